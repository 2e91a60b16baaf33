"""Reading `predictions.jsonl`."""

from __future__ import annotations

from pathlib import Path

import pytest

from imsm.evaluation.predictions import FILE, read_predictions, task_dir, write_predictions
from imsm.utils.errors import UserError
from tests.evaluation.bench import Bench
from tests.helpers.damage import DAMAGES


def test_predictions_are_read_as_a_table(bench: Bench) -> None:
    sha256 = bench.evaluate().predictions_sha256
    folder = bench.root / "evaluation" / "colours-12345678"
    folder.parent.mkdir()
    (bench.root / "out").rename(folder)
    table = read_predictions(bench.root, task="colours", test_set="1234567890", sha256=sha256)
    assert list(table.index) == [f"jsonl/test/{number}" for number in range(4)]
    assert {"score.contain", "score.exact_match", "score.token_f1"} <= set(table.columns)
    with pytest.raises(UserError, match="is missing"):
        read_predictions(bench.root, task="colours", test_set="0" * 8, sha256=sha256)


@pytest.mark.parametrize("damage", [*sorted(DAMAGES), "score"])
def test_predictions_that_changed_since_their_result_are_rejected(bench: Bench, damage: str) -> None:
    sha256 = bench.evaluate().predictions_sha256
    file = task_dir(bench.root, task="colours", test_set="1" * 8) / FILE
    file.parent.mkdir(parents=True)
    (bench.root / "out" / FILE).rename(file)
    if damage == "score":
        file.write_text(file.read_text().replace('"contain": 0.0', '"contain": 1.0', 1))
    else:
        DAMAGES[damage](file)
    with pytest.raises(UserError, match=r"mode=evaluate") as caught:
        read_predictions(bench.root, task="colours", test_set="1" * 8, sha256=sha256)
    assert str(file) in str(caught.value) and "\n" not in str(caught.value)


def test_a_row_with_other_keys_is_rejected(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="a prediction has the keys"):
        write_predictions(tmp_path, [{"id": "a"}])
    assert list(tmp_path.iterdir()) == []
