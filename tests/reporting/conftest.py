"""Three finished runs and a swept baseline."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from imsm.reporting.report_data import ReportData
from tests.reporting.factories import report_data, write_runs


@pytest.fixture
def runs(tmp_path: Path) -> dict[str, Any]:
    """An original, a PEFT and an IMSM run in one root; two logit mixes as baselines of the last."""
    return write_runs(tmp_path)


@pytest.fixture(scope="session")
def shared_runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The same for tests that change nothing."""
    return write_runs(tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="session")
def data(shared_runs: dict[str, Any]) -> ReportData:
    """The data of the IMSM run's report."""
    return report_data(shared_runs)[1]
