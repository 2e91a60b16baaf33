"""Reading and writing the record of a task sequence."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from imsm.evaluation.result import write_result
from imsm.reporting.continual.record import FILE, FORMAT, build_record, percentile_bounds, read_record, write_record
from imsm.utils.errors import UserError
from tests.helpers.config import result
from tests.helpers.damage import DAMAGES


def test_a_record_reads_back(tmp_path: Path) -> None:
    write_record(tmp_path, {"format": FORMAT, "name": "Ä"})
    assert read_record(tmp_path) == {"format": FORMAT, "name": "Ä"}
    write_record(tmp_path, {"format": 0})
    with pytest.raises(UserError, match="not of format"):
        read_record(tmp_path)


@pytest.mark.parametrize("damage", sorted(DAMAGES))
def test_a_record_that_is_not_what_was_written_is_named(tmp_path: Path, damage: str) -> None:
    write_record(tmp_path, {"format": FORMAT, "scores": [[47.5]]})
    DAMAGES[damage](tmp_path / FILE)
    with pytest.raises(UserError, match=r"imsm continual") as caught:
        read_record(tmp_path)
    assert str(tmp_path / FILE) in str(caught.value)


def test_percentile_bounds() -> None:
    assert percentile_bounds(None) == {}
    assert percentile_bounds(np.arange(1001.0)) == pytest.approx({"low": 25.0, "high": 975.0})


def test_a_run_without_a_previous_stage_is_not_a_sequence(tmp_path: Path) -> None:
    write_result(tmp_path, result("peft"))
    with pytest.raises(UserError, match="not a later stage"):
        build_record(tmp_path)
