"""Finished runs shared by the tests of the baselines."""

from __future__ import annotations

from pathlib import Path

import pytest

from imsm.studies.baselines.finished_run import FinishedRun, load_finished_run
from tests.studies.baselines.finished import finished, write_files


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_files(tmp_path_factory.mktemp("files"))


@pytest.fixture(scope="session")
def runs_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(autouse=True)
def user_runs(runs_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IMSM_RUNS", str(runs_root))


@pytest.fixture(scope="session")
def peft_folder(files: Path, runs_root: Path) -> Path:
    """A run of method=peft, with its original next to it."""
    finished(files, runs_root, method="original")
    return finished(files, runs_root)


@pytest.fixture(scope="session")
def imsm_folder(files: Path, peft_folder: Path) -> Path:
    return finished(files, peft_folder.parent, method="imsm")


@pytest.fixture
def peft_run(peft_folder: Path) -> FinishedRun:
    return load_finished_run(peft_folder, option="run")


@pytest.fixture
def imsm_run(imsm_folder: Path) -> FinishedRun:
    return load_finished_run(imsm_folder, option="run")
