"""A file that is not what was written is one line that names it and the fix."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from imsm.utils.errors import UserError
from imsm.utils.json_files import read_hashed_json, read_json, read_text, write_hashed_json
from tests.helpers.damage import DAMAGES, flip_bit

VALUES = {"steps": 3, "parts": {"adapter": 10, "names": ["ä", "b"]}}


def error_of(function: Callable[..., object], path: Path, **arguments: object) -> str:
    """Return the error of a reader, which must be one line with the file and the fix."""
    with pytest.raises(UserError) as caught:
        function(path, fix="repair it", **arguments)
    text = str(caught.value)
    assert "\n" not in text and str(path) in text and text.endswith("; repair it") and len(text) < 600
    return text


@pytest.mark.parametrize("name", [*sorted(DAMAGES.keys() - {"flipped", "mapping"})])
def test_no_damaged_file_is_read_as_a_mapping(tmp_path: Path, name: str) -> None:
    path = tmp_path / "a.json"
    write_hashed_json(path, VALUES)
    DAMAGES[name](path)
    for reader in (read_json, read_hashed_json):
        error_of(reader, path)


def test_text_must_be_a_readable_utf8_file(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"\xff\xfe")
    for path in (tmp_path / "a", tmp_path, tmp_path / "missing", tmp_path / "null\0"):
        error_of(read_text, path)


def test_a_shape_names_the_key_that_is_wrong(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps(VALUES))
    assert read_json(path, fix="-", shape={"parts": dict, "parts.adapter": int}) == VALUES
    for shape in ({"parts": list}, {"parts.gate": int}, {"steps.adapter": int}):
        assert next(iter(shape)) in error_of(read_json, path, shape=shape)


def test_any_flipped_bit_of_a_hashed_file_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_hashed_json(path, VALUES)
    assert read_hashed_json(path, fix="-") == VALUES
    for position in range(len(path.read_bytes())):
        write_hashed_json(path, VALUES)
        flip_bit(path, position)
        # whitespace between values may change
        try:
            assert read_hashed_json(path, fix="-") == VALUES
        except UserError:
            continue
