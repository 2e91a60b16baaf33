"""`gate.skip=true` from the command to the report."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from imsm.config.identity import run_identity, run_name
from imsm.evaluation.predictions import read_predictions
from imsm.evaluation.result import read_result
from imsm.models.siamese.config import SiameseConfig
from imsm.utils.errors import UserError
from tests.helpers.config import config
from tests.helpers.word_run import run_words


def test_a_run_with_skipping_records_and_shows_its_decisions(word_files: Path, tmp_path: Path) -> None:
    run = run_words(word_files, tmp_path, "gate.skip=true", "gate.skip_threshold=0.4999", "trainer.num_epochs=2")
    assert SiameseConfig.from_pretrained(run / "model").skip_threshold == 0.4999
    (entry,) = read_result(run)["evaluation"]["tasks"].values()
    decided = entry["decided"]
    assert list(decided) == ["tuned", "original", "both"] and sum(decided.values()) == entry["num_examples"]
    table = read_predictions(run, task="jsonl", test_set=entry["test_set"], sha256=entry["predictions_sha256"])
    assert decided["tuned"] == (table.gate_mean == 0).sum() and decided["original"] == (table.gate_mean == 1).sum()
    assert decided["tuned"] + decided["original"] > 0
    report = (run / "report.html").read_text()
    assert f"{100 * decided['tuned'] / entry['num_examples']:.0f} % tuned" in report


def test_the_name_of_a_run_without_skipping_is_unchanged() -> None:
    plain, default, skipping = config(), config("gate.skip=false"), config("gate.skip=true")
    assert "skip" not in json.dumps(run_identity(plain)["gate"])
    assert run_name(plain) == run_name(default) != run_name(skipping)
    assert run_identity(skipping)["gate"]["skip_threshold"] == 0.1
    assert run_name(config("method=peft", "gate.skip=true")) == run_name(config("method=peft"))


@pytest.mark.parametrize("value", ["0", "0.5", "0.9", "a"])
def test_a_bad_threshold_is_one_line(value: str) -> None:
    with pytest.raises(UserError, match=r"^1 error in the configuration\n  gate\.skip_threshold=[^\n]*$"):
        config("gate.skip=true", f"gate.skip_threshold={value}")
