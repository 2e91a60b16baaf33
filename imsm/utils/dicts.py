"""Flatten and compare nested dicts."""

import json
from collections.abc import Mapping
from typing import Any


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return a nested dict's leaves by dotted key."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat


def diff_dicts(left: Mapping[str, Any], right: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Return the dotted keys whose values differ, with both values (None if missing).

    ``left`` was read from JSON; ``right`` is converted to JSON types for the comparison.
    """
    left, right = flatten(left), flatten(json.loads(json.dumps(right)))
    pairs = {key: (left.get(key), right.get(key)) for key in sorted(left.keys() | right.keys())}
    return {key: (old, new) for key, (old, new) in pairs.items() if old != new}


def format_diff(saved: Mapping[str, Any], current: Mapping[str, Any]) -> str:
    """Return one line per difference between a saved and the current configuration."""
    pairs = diff_dicts(saved, current).items()
    return "\n".join(f"  {key}: saved {old!r}, now {new!r}" for key, (old, new) in pairs)
