"""Bars of a GPU refer to values that the rows measure."""

from __future__ import annotations

from scripts.bench.gpu.bars import BARS, comparisons
from scripts.bench.gpu.rows import ROWS


def test_every_bar_names_rows_that_are_measured() -> None:
    names = {row.name for row in ROWS}
    paths = [path for bar in BARS for path in (bar.ours, bar.theirs) if isinstance(path, str)]
    assert {path.split("/")[0] for path in paths} <= names
    assert len({row.name for row in ROWS}) == len(ROWS)


def test_measured_rows_become_comparisons() -> None:
    rows = {"steps mrpc 16": {"peft": {"ms": 10.0}, "imsm, cache": {"ms": 10.3}, "imsm": {"error": "out of memory"}}}
    (row,) = comparisons(rows, is_gpu=True)
    assert (row.ratio, row.bar, row.met) == (1.03, 1.05, True)
    assert comparisons(rows, is_gpu=False)[0].bar is None  # a CPU's times have other bars
    assert comparisons({"syncs": {"imsm": {"micro_batch": 0}}}, is_gpu=True)[0].met


def test_a_failed_row_has_no_comparison() -> None:
    assert comparisons({"decoding 1": {"error": "no"}, "syncs": {}}, is_gpu=True) == []
