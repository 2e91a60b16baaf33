"""Reading and writing the record of a task sequence."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from imsm.evaluation.result import write_result
from imsm.reporting.continual.record import FILE, FORMAT, build_record, percentile_bounds, read_record, write_record
from imsm.utils.errors import UserError
from tests.helpers.config import result


def test_a_record_reads_back_and_a_damaged_one_is_none(tmp_path: Path) -> None:
    assert read_record(tmp_path) is None
    write_record(tmp_path, {"format": FORMAT, "name": "Ä"})
    assert read_record(tmp_path) == {"format": FORMAT, "name": "Ä"}
    for text in ("{", "[]", '{"format": 0}'):
        (tmp_path / FILE).write_text(text)
        assert read_record(tmp_path) is None


def test_percentile_bounds() -> None:
    assert percentile_bounds(None) == {}
    assert percentile_bounds(np.arange(1001.0)) == pytest.approx({"low": 25.0, "high": 975.0})


def test_a_run_without_a_previous_stage_is_not_a_sequence(tmp_path: Path) -> None:
    write_result(tmp_path, result("peft"))
    with pytest.raises(UserError, match="not a later stage"):
        build_record(tmp_path)
