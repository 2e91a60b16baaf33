"""Control characters as visible escapes."""

from __future__ import annotations

import unicodedata

from imsm.utils.control_characters import escape_controls


def test_controls_are_visible_and_layout_stays() -> None:
    assert escape_controls("a\x1b[31mb\x9b\r\u202e\u2028\ud800") == r"a\x1b[31mb\x9b\x0d\u202e\u2028\ud800"
    assert escape_controls("a\tb\nc é 東京 −1.5 ±") == "a\tb\nc é 東京 −1.5 ±"


def test_every_control_and_invisible_character_is_escaped() -> None:
    # number signs of Arabic, Syriac and Kaithi and notation marks are format characters with a shape of their own
    kept = {"\t", "\n"}
    categories = {"Cc", "Zl", "Zp", "Cs"}
    every = [chr(code) for code in range(0x110000) if unicodedata.category(chr(code)) in categories]
    assert {char for char in every if escape_controls(char) == char} == kept
    bidirectional = [chr(code) for code in (*range(0x202A, 0x202F), *range(0x2066, 0x206A), 0x200E, 0x200F, 0x61C)]
    assert not [char for char in (*bidirectional, "\u200b", "\u200d", "\ufeff") if escape_controls(char) == char]


def test_escaping_twice_changes_nothing() -> None:
    once = escape_controls("\x1b\u202e")
    assert escape_controls(once) == once
