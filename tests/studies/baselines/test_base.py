"""The descriptions of the baselines."""

from __future__ import annotations

import pytest

from imsm.studies.baselines.registry import list_baselines, load_baseline


@pytest.mark.parametrize("name", list_baselines())
def test_a_shipped_baseline_describes_its_module_and_valid_values(name: str) -> None:
    info = load_baseline(name).INFO
    assert info.name == name and info.meaning
    assert all(info.low <= value <= info.high for value in (*info.grid, *info.ends))
