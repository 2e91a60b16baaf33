"""Arguments that several commands share."""

from __future__ import annotations

import gc
import sys
import weakref
from pathlib import Path

import pytest

from imsm.cli.common import fast_imports, find_run, import_from_config_dir, write_output
from imsm.utils.errors import UserError


def test_modules_of_the_config_dir_can_be_imported(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "conf").mkdir()
    assert import_from_config_dir(Path("conf")) == tmp_path / "conf"
    assert sys.path[0] == str(tmp_path / "conf")
    assert import_from_config_dir(None) is None
    with pytest.raises(UserError, match="--config-dir nowhere"):
        import_from_config_dir(Path("nowhere"))


def test_a_run_is_found_by_path_and_by_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("IMSM_RUNS", str(tmp_path))
    (tmp_path / "a" / "model").mkdir(parents=True)
    (tmp_path / "a" / "model" / "config.json").touch()
    (tmp_path / "unfinished").mkdir()
    assert find_run("a") == find_run(str(tmp_path / "a")) == tmp_path / "a"
    with pytest.raises(UserError, match=r"run=unfinished: .*finished: a"):
        find_run("unfinished")


def test_the_output_folder_is_created(tmp_path: Path) -> None:
    write_output(tmp_path / "new" / "table.md", "text")
    assert (tmp_path / "new" / "table.md").read_text() == "text"
    with pytest.raises(UserError, match="--output"):
        write_output(tmp_path / "new" / "table.md" / "x", "text")


class _Cycle:
    def __init__(self) -> None:
        self.itself = self


def test_garbage_of_an_earlier_run_is_collected() -> None:
    with fast_imports():
        kept = weakref.ref(_Cycle())
    gc.collect()
    dead = weakref.ref(_Cycle())
    with fast_imports():
        assert dead() is None
    assert kept() is not None  # made inside: it is excluded, as library objects are
    assert gc.isenabled()
