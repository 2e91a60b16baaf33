"""Sample disjoint splits from an endless iterator of rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

Row = dict[str, Any]


def disjoint(stream: Iterator[Row], sizes: dict[str, int], *, key: Callable[[Row], object]) -> dict[str, list[Row]]:
    """Fill the splits in order; keys are unique across all splits."""
    seen: set[object] = set()
    splits: dict[str, list[Row]] = {}
    for name, size in sizes.items():
        rows: list[Row] = []
        while len(rows) < size:
            row = next(stream)
            if key(row) not in seen:
                seen.add(key(row))
                rows.append(row)
        splits[name] = rows
    return splits


def numbered(splits: dict[str, list[Row]]) -> dict[str, list[Row]]:
    """Add the column `idx` of GLUE, which counts the rows of a split."""
    return {name: [{**row, "idx": index} for index, row in enumerate(rows)] for name, rows in splits.items()}
