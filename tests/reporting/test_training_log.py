"""Reading a training log."""

from __future__ import annotations

from pathlib import Path

import pytest

from imsm.reporting.training_log import LOG, read_training_log, training_log_error
from tests.helpers.damage import DAMAGES


def test_a_resumed_step_replaces_the_first_one_and_broken_lines_are_skipped(tmp_path: Path) -> None:
    lines = ['{"step": 2, "loss": 3.0}', '{"step": 1, "loss": 4.0}', '{"event": "eval"}', '{"step": 2, "loss": 2.5}']
    (tmp_path / LOG).write_text("\n".join([*lines, '{"step": 3, "lo']))
    table = read_training_log(tmp_path)
    assert list(table["step"]) == [1, 2] and list(table["loss"]) == [4.0, 2.5]


def test_no_log_is_an_empty_table(tmp_path: Path) -> None:
    assert read_training_log(tmp_path).empty and training_log_error(tmp_path) is None


@pytest.mark.parametrize("damage", ["folder", "unreadable", "binary"])
def test_a_log_that_cannot_be_read_is_named(tmp_path: Path, damage: str) -> None:
    (tmp_path / LOG).write_text('{"step": 1, "loss": 4.0}\n')
    assert training_log_error(tmp_path) is None
    DAMAGES[damage](tmp_path / LOG)
    assert read_training_log(tmp_path).empty
    assert str(tmp_path / LOG) in str(training_log_error(tmp_path))


@pytest.mark.parametrize(
    "line", ["{", "[]", "null", '{"step": [], "loss": 1}', '{"step": 1e999, "loss": 1}', '{"step": 3, "loss": {}}']
)
def test_damaged_lines_are_left_out_and_named(tmp_path: Path, line: str) -> None:
    (tmp_path / LOG).write_text('{"step": 1, "loss": "nan"}\n' + line + '\n{"step": null, "score": 1}\n')
    table = read_training_log(tmp_path)
    assert list(table["step"]) == [1] and table["loss"].isna().all()
    assert "line 2 cannot be read" in str(training_log_error(tmp_path))
