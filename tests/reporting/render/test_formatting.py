"""Numbers as report text."""

from __future__ import annotations

import pytest

from imsm.reporting.render.formatting import (
    format_interval,
    format_number,
    format_p_value,
    format_percent,
    format_provenance,
    join_names,
)


@pytest.mark.parametrize(("value", "text"), [(None, "–"), (float("nan"), "–"), (-1.25, "−1.2"), (7.0, "7.0")])
def test_numbers(value: float | None, text: str) -> None:
    assert format_number(value) == text


def test_signs_digits_and_intervals() -> None:
    assert format_number(1.0, digits=3, signed=True) == "+1.000"
    assert format_interval(-1.0, -2.0, 3.0) == "−1.0 [−2.0, 3.0]"
    assert format_interval(-1.0, -2.0, 3.0, signed=True) == "−1.0 [−2.0, +3.0]"


def test_percentages_p_values_and_names() -> None:
    assert (format_percent(None), format_percent(12.34)) == ("undefined", "12.3 %")
    assert [format_p_value(p) for p in (None, 0.0004, 0.25)] == ["–", "< 0.001", "0.250"]
    assert (join_names([]), join_names(["a", "b"])) == ("none", "a, b")


@pytest.mark.parametrize(("dirty", "text"), [(True, "commit ab, with uncommitted changes"), (False, "commit ab")])
def test_provenance_names_versions_commit_and_fingerprints(dirty: bool, text: str) -> None:
    result = {"git": {"commit": "ab", "dirty": dirty}, "versions": {"torch": "2"}, "fingerprints": {"data": "ff"}}
    assert format_provenance(result) == ["torch 2", text, "data ff"]
    assert format_provenance(result | {"git": None}) == ["torch 2", "data ff"]
