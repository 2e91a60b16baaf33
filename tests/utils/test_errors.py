"""The first line of an error's message."""

from __future__ import annotations

from imsm.utils.errors import first_line


def test_the_first_line_or_the_type_of_an_error() -> None:
    assert first_line(ValueError("\n one\ntwo")) == "one"
    assert first_line(KeyError()) == "KeyError"
