"""A new folder is complete or absent, and never replaces files."""

from __future__ import annotations

from pathlib import Path

import pytest

from imsm.utils.errors import UserError
from imsm.utils.new_folder import new_folder


def test_folder_appears_only_when_complete(tmp_path: Path) -> None:
    path = tmp_path / "a" / "new"
    with new_folder(path, option="--out") as temporary:
        (temporary / "file").write_text("x")
        assert temporary.parent == path.parent and not path.exists()
    assert (path / "file").read_text() == "x" and list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_nothing_is_left_after_an_error(tmp_path: Path, error: type[BaseException]) -> None:
    with pytest.raises(error), new_folder(tmp_path / "new", option="--out") as temporary:
        (temporary / "file").write_text("x")
        raise error
    assert list(tmp_path.iterdir()) == []


def test_leftover_of_a_killed_process_is_removed_and_an_empty_folder_replaced(tmp_path: Path) -> None:
    (tmp_path / ".new.tmp-999999999-ab").mkdir()
    (tmp_path / "new").mkdir()
    with new_folder(tmp_path / "new", option="--out") as temporary:
        (temporary / "file").touch()
    assert [path.name for path in tmp_path.rglob("*")] == ["new", "file"]


def test_existing_files_are_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("x")
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for name in ("full", "file", "link"):
        with (
            pytest.raises(UserError, match=r"--out .*not an empty folder"),
            new_folder(tmp_path / name, option="--out"),
        ):
            pass
    with pytest.raises(UserError, match="cannot be written"), new_folder(tmp_path / "file" / "new", option="--out"):
        pass
    # written by another process meanwhile
    with pytest.raises(OSError), new_folder(tmp_path / "late", option="--out"):
        (tmp_path / "late").mkdir()
        (tmp_path / "late" / "theirs").write_text("x")
    assert (tmp_path / "late" / "theirs").read_text() == "x" and (tmp_path / "full" / "file").read_text() == "x"
