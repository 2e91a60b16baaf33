"""Folders of this machine."""

from __future__ import annotations

from pathlib import Path

import pytest

from imsm.utils.errors import UserError
from imsm.utils.paths import cache_folder, checkout, conf_folder, is_local_path, resolve_run_dir, runs_root


def test_environment_variables_set_cache_and_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IMSM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("IMSM_RUNS", str(tmp_path / "runs"))
    assert (cache_folder(), runs_root()) == (tmp_path / "cache", tmp_path / "runs")


def test_in_a_checkout_the_runs_are_in_its_folder_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("IMSM_RUNS", raising=False)
    root = checkout()
    assert root is not None and runs_root() == root / "runs"
    assert (conf_folder() / "config.yaml").is_file()


def test_a_run_is_given_as_a_folder_or_as_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IMSM_RUNS", str(tmp_path))
    (tmp_path / "run").mkdir()
    assert resolve_run_dir("run") == resolve_run_dir(str(tmp_path / "run")) == tmp_path / "run"
    with pytest.raises(UserError, match=r"--run other: no such folder"):
        resolve_run_dir("other", option="--run")


@pytest.mark.parametrize(
    ("path", "local"),
    [("owner/name", False), ("gpt2", False), ("imsm:miniature", False), ("./name", True), ("~/m", True), ("/a", True),
     ("a/b/c", True), ("folder", True)],
)  # fmt: skip
def test_local_paths_are_distinguished_from_hub_ids(
    path: str, local: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "folder").mkdir()
    monkeypatch.chdir(tmp_path)
    assert is_local_path(path) is local
