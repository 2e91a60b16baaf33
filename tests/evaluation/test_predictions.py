"""Reading `predictions.jsonl`."""

from __future__ import annotations

from pathlib import Path

import pytest

from imsm.evaluation.predictions import read_predictions, write_predictions
from imsm.utils.errors import UserError
from tests.evaluation.bench import Bench


def test_predictions_are_read_as_a_table(bench: Bench) -> None:
    bench.evaluate()
    folder = bench.root / "evaluation" / "colours-12345678"
    folder.parent.mkdir()
    (bench.root / "out").rename(folder)
    table = read_predictions(bench.root, task="colours", test_set="1234567890")
    assert list(table.index) == [f"jsonl/test/{number}" for number in range(4)]
    assert {"score.contain", "score.exact_match", "score.token_f1"} <= set(table.columns)
    (folder / "predictions.jsonl").write_text('{"id": 1')
    with pytest.raises(UserError, match="is damaged"):
        read_predictions(bench.root, task="colours", test_set="1234567890")
    with pytest.raises(UserError, match="is missing"):
        read_predictions(bench.root, task="colours", test_set="0" * 8)


def test_a_row_with_other_keys_is_rejected(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="a prediction has the keys"):
        write_predictions(tmp_path, [{"id": "a"}])
    assert list(tmp_path.iterdir()) == []
