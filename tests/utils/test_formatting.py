"""Sizes and durations as text."""

from __future__ import annotations

import pytest

from imsm.utils.formatting import format_bytes, format_duration


@pytest.mark.parametrize(
    ("size", "text"),
    [(None, "–"), (0, "0 B"), (999, "999 B"), (1500, "1.5 kB"), (2.5e6, "2.5 MB"), (16.06e9, "16.06 GB"),
     (2e12, "2,000.00 GB")],
)  # fmt: skip
def test_bytes_have_decimal_units(size: float | None, text: str) -> None:
    assert format_bytes(size) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(None, "–"), (4.6, "5s"), (59.6, "1m 00s"), (184, "3m 04s"), (3720, "1h 02m")]
)
def test_durations_have_two_units(seconds: float | None, text: str) -> None:
    assert format_duration(seconds) == text
