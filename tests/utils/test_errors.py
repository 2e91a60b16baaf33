"""One line for an error."""

from __future__ import annotations

from pathlib import Path

import pytest

from imsm.utils.errors import file_error, first_line


def test_the_first_line_or_the_type_of_an_error() -> None:
    assert first_line(ValueError("\n one\ntwo")) == "one"
    assert first_line(KeyError()) == "KeyError"


def test_an_error_of_a_file_names_it_or_the_target_of_a_rename(tmp_path: Path) -> None:
    (tmp_path / "new").write_text("")
    (tmp_path / "folder").mkdir()
    for action, name in (
        (lambda: (tmp_path / "missing").read_text(), "missing"),
        (lambda: (tmp_path / "folder").write_text(""), "folder"),
        (lambda: (tmp_path / "new").replace(tmp_path / "folder"), "folder"),
    ):
        with pytest.raises(OSError) as caught:
            action()
        assert str(file_error(caught.value)).startswith(f"{tmp_path / name}: ")
    assert file_error(OSError("no file")) is None
    assert file_error(ValueError("x")) is None
