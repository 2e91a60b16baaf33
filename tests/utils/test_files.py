"""Atomic writes and folder locks."""

from __future__ import annotations

import multiprocessing
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from imsm.utils.errors import UserError
from imsm.utils.files import file_lock, write_atomic


def test_a_failed_write_keeps_the_old_file_and_no_temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    write_atomic(path, "old")
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError("disk full")))
        with pytest.raises(OSError, match="disk full"):
            write_atomic(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
    write_atomic(path, "new")
    assert path.read_text() == "new"


def test_several_threads_can_write_one_file_at_once(tmp_path: Path) -> None:
    path = tmp_path / "figure.png"
    contents = [bytes([number]) * 100_000 for number in range(8)]
    with ThreadPoolExecutor(max_workers=8) as pool:
        list(pool.map(lambda content: write_atomic(path, content), contents * 4))
    assert path.read_bytes() in contents
    assert list(tmp_path.iterdir()) == [path]


def test_a_second_lock_is_refused_until_the_first_is_released(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with file_lock(folder), pytest.raises(UserError, match="another process"), file_lock(folder):
        pass
    with file_lock(folder):
        pass


def test_wait_blocks_until_the_lock_is_released(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    acquired = threading.Event()

    def acquire() -> None:
        with file_lock(tmp_path, wait=True):
            acquired.set()

    thread = threading.Thread(target=acquire)
    with file_lock(tmp_path):
        thread.start()
        assert not acquired.wait(0.2)
    thread.join(10)
    assert acquired.is_set()
    assert "waiting for another process" in capsys.readouterr().err


def _lock_and_die(folder: Path) -> None:
    lock = file_lock(folder)
    lock.__enter__()
    os._exit(1)


def test_the_lock_of_a_killed_process_is_released(tmp_path: Path) -> None:
    process = multiprocessing.get_context("fork").Process(target=_lock_and_die, args=(tmp_path,))
    process.start()
    process.join(10)
    with file_lock(tmp_path):
        pass


def test_a_folder_that_cannot_be_created_is_a_user_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"), file_lock(tmp_path / "file"):
        pass
