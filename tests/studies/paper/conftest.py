"""Fixtures of the tests of the paper's tables."""

from __future__ import annotations

from pathlib import Path

import pytest

from imsm.config.compose import ConfigComposer
from imsm.studies.paper.runs import RunIndex


@pytest.fixture(scope="session")
def composer() -> ConfigComposer:
    return ConfigComposer()


@pytest.fixture
def runs(composer: ConfigComposer, tmp_path: Path) -> RunIndex:
    return RunIndex(composer, runs_root=tmp_path)
