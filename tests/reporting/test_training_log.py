"""Reading a training log."""

from __future__ import annotations

from pathlib import Path

from imsm.reporting.training_log import LOG, read_training_log


def test_a_resumed_step_replaces_the_first_one_and_broken_lines_are_skipped(tmp_path: Path) -> None:
    lines = ['{"step": 2, "loss": 3.0}', '{"step": 1, "loss": 4.0}', '{"event": "eval"}', '{"step": 2, "loss": 2.5}']
    (tmp_path / LOG).write_text("\n".join([*lines, '{"step": 3, "lo']))
    table = read_training_log(tmp_path)
    assert list(table["step"]) == [1, 2] and list(table["loss"]) == [4.0, 2.5]


def test_no_log_is_an_empty_table(tmp_path: Path) -> None:
    assert read_training_log(tmp_path).empty
