"""Differences of nested dicts by dotted key."""

from __future__ import annotations

from imsm.utils.dicts import diff_dicts, flatten, format_diff


def test_flatten_joins_keys_and_keeps_lists() -> None:
    assert flatten({"a": {"b": 1, "c": {"d": [1, {"e": 2}]}}, "f": None}) == {
        "a.b": 1,
        "a.c.d": [1, {"e": 2}],
        "f": None,
    }


def test_only_differing_and_missing_keys_are_returned() -> None:
    assert diff_dicts({"a": {"b": 1, "c": 2}, "d": 3}, {"a": {"b": 1, "c": 5}, "e": 4}) == {
        "a.c": (2, 5),
        "d": (3, None),
        "e": (None, 4),
    }


def test_tuples_equal_the_lists_that_json_saved() -> None:
    assert diff_dicts({"a": [1, 2]}, {"a": (1, 2)}) == {}


def test_each_difference_is_one_line() -> None:
    assert format_diff({"a": {"b": 1}}, {"a": {"b": "x"}}) == "  a.b: saved 1, now 'x'"
    assert format_diff({"a": 1}, {"a": 1}) == ""
