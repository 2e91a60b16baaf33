"""Leftovers of killed processes are removed; those of running ones are not."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from imsm.utils.leftovers import remove_folders, remove_run_leftovers, remove_temporaries
from imsm.utils.run_dir import RunDir


@pytest.fixture
def dead() -> int:
    """The id of a process that has ended."""
    process = subprocess.Popen(["true"])
    process.wait()
    return process.pid


@pytest.fixture
def living() -> Iterator[int]:
    with subprocess.Popen(["sleep", "60"]) as process:
        yield process.pid
        process.kill()


def write(path: Path, *, age: float = 0.0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    os.utime(path, (time.time() - age, time.time() - age))
    return path


def test_temporary_files_of_dead_writers_are_removed(tmp_path: Path, dead: int, living: int) -> None:
    removed = [
        write(tmp_path / f"report.md.{dead}-0a1b2c3d.tmp"),
        write(tmp_path / "figures" / "gate.png.tmp"),
        write(tmp_path / f"result.json.{dead}.tmp"),
    ]
    kept = [
        write(tmp_path / f"report.md.{living}-0a1b2c3d.tmp", age=9e9),
        write(tmp_path / f"report.md.{os.getpid()}-0a1b2c3d.tmp"),
        write(tmp_path / "thesis.tmp", age=9e9),
        write(tmp_path / "report.md"),
    ]
    remove_temporaries(tmp_path, older_than=0.0)
    assert [path.exists() for path in removed] == [False] * 3
    assert all(path.exists() for path in kept)


def test_in_a_shared_folder_a_fresh_file_may_be_of_another_machine(tmp_path: Path, dead: int) -> None:
    fresh = write(tmp_path / f"a.{dead}-0a1b2c3d.tmp")
    old = write(tmp_path / f"b.{dead}-0a1b2c3d.tmp", age=3600)
    remove_temporaries(tmp_path)
    assert fresh.exists() and not old.exists()
    remove_temporaries(tmp_path / "missing")


def test_parts_of_checkpoints_are_removed_and_a_replaced_one_is_restored(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    for name in ("step-2", ".step-2.new", ".step-2.old", ".step-3.old", "abandoned-step-4"):
        write(run.checkpoints / name / "state.json")
    remove_run_leftovers(run)
    assert sorted(path.name for path in run.checkpoints.iterdir()) == ["step-2", "step-3"]


def test_the_checkpoints_of_a_finished_training_are_removed_unless_its_model_is_gone(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    write(run.checkpoints / "step-2" / "state.json")
    write(run.trained)
    remove_run_leftovers(run)
    assert run.checkpoints.exists()
    write(run.model / "config.json")
    remove_run_leftovers(run)
    assert not run.checkpoints.exists()


def test_folders_of_dead_processes_are_removed(tmp_path: Path, dead: int, living: int) -> None:
    names = {f"sweep-{dead}-x1": False, f"sweep-{living}-x2": True, "sweep-abcdefgh": True, f"other-{dead}-x": True}
    for name in names:
        write(tmp_path / name / "status")
    old = tmp_path / "sweep-oldversion"
    old.mkdir()
    os.utime(old, (0, 0))
    (tmp_path / f"sweep-{dead}-link").symlink_to(tmp_path / f"other-{dead}-x")
    remove_folders(tmp_path, prefix="sweep-")
    assert {name: (tmp_path / name).exists() for name in names} == names
    assert not old.exists()
