"""Folders of this machine."""

from __future__ import annotations

from pathlib import Path

import pytest

from imsm.utils.errors import UserError
from imsm.utils.paths import (
    cache_folder,
    check_links,
    check_path_name,
    checkout,
    conf_folder,
    is_local_path,
    is_path_name,
    resolve_run_dir,
    runs_root,
)


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


@pytest.mark.parametrize("name", ["gsm8k", "a", "0", "llama3_1-lora.x-s0", "a..", "A-._", "x" * 200])
def test_a_name_can_be_one_part_of_a_path(name: str, tmp_path: Path) -> None:
    assert is_path_name(name)
    assert check_path_name(name, key="k", source=tmp_path) == name
    assert (tmp_path / name).resolve().parent == tmp_path.resolve()


@pytest.mark.parametrize(
    "name",
    ["", ".", "..", "../x", "/x", "a/b", "a\\b", "a\0", "a\n", "a b", "-x", "_x", ".x", "ä", "x" * 201, 3, None],
)
def test_other_names_are_rejected_in_one_line(name: object, tmp_path: Path) -> None:
    assert not is_path_name(name)
    with pytest.raises(UserError) as error:
        check_path_name(name, key="data.name", source=tmp_path / "result.json")
    assert "\n" not in str(error.value) and "data.name=" in str(error.value)


def test_links_inside_a_run_are_accepted_and_others_are_not(tmp_path: Path) -> None:
    run = tmp_path / "run"
    (run / "wandb" / "run-1").mkdir(parents=True)
    (run / "evaluation").mkdir()
    (run / "wandb" / "latest-run").symlink_to("run-1")
    (run / "wandb" / "run-1" / "core.log").symlink_to(tmp_path / "log")
    (run / "newest").symlink_to("evaluation")
    check_links(run)
    (tmp_path / "name").symlink_to(run)
    check_links(tmp_path / "name")
    for target in ("../..", "/", str(tmp_path), "../newest/../../x", "../../run-2"):
        (run / "evaluation" / "link").symlink_to(target)
        with pytest.raises(UserError, match="link: is a symbolic link"):
            check_links(run)
        (run / "evaluation" / "link").unlink()
    (run / "wandb").rename(tmp_path / "wandb")
    (run / "wandb").symlink_to(tmp_path / "wandb")
    with pytest.raises(UserError, match="wandb: is a symbolic link"):
        check_links(run)
