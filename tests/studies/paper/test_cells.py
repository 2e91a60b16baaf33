"""Cells: scores, intervals, marks, averages, parameter counts."""

from __future__ import annotations

import numpy
import pytest
import scipy.stats

from imsm.evaluation.statistics.intervals import Interval, mean_ci
from imsm.studies.paper.cells import CellBuilder, TableCell, adjust, row_average
from imsm.studies.paper.runs import RunIndex, required_runs
from imsm.studies.paper.spec import load_table
from tests.studies.paper.finished import N, write_run


def test_a_cell_has_an_interval_and_one_seed_no_test(runs: RunIndex) -> None:
    table = load_table("table2")
    found = {"-".join(run.name.split("-")[:4]): run for run in required_runs(table, runs, scale="mini", seeds=1)}
    write_run(found["mini-lora-ropes-peft"], runs, known=0.2, seed=1)
    imsm = write_run(found["mini-lora-ropes-imsm"], runs, known=0.9, seed=2)
    runs.refresh()
    rows = {(row.values["peft"], row.values["method"]): row for row in table.rows}
    column = next(c for c in table.spec.columns if c.name == "webq")
    builder = CellBuilder(table=table, runs=runs, scale="mini", seeds=1, protocol="strict")
    cell = builder.build(rows["lora", "imsm"], column)
    assert cell.interval == mean_ci(100 * imsm["webq"], groups=[str(n) for n in range(N)])
    assert cell.p_value is None
    missing = builder.build(rows["ia3", "peft"], column)
    assert missing.interval is None and [run.name for run in missing.missing] == [found["mini-ia3-ropes-peft"].name]


def test_differences_are_marked_by_holms_correction_over_all_cells() -> None:
    def cell(p_value: float | None) -> TableCell:
        return TableCell(interval=None, p_value=p_value, trained_on=False, missing=[], test="t")

    # unadjusted, three of them are below 0.05; adjusted: 0.04, 0.06, 0.06
    found = adjust({"a": cell(0.01), "b": cell(0.02), "c": cell(0.03), "d": cell(0.9), "e": cell(None)})
    assert [name for name, each in found.items() if each.differs] == ["a"]


def test_tasks_trained_on_are_excluded_from_averages() -> None:
    def cell(value: float, *, trained_on: bool = False) -> TableCell:
        interval = Interval(estimate=value, low=value, high=value, level=0.95)
        return TableCell(interval=interval, p_value=None, trained_on=trained_on, missing=[], test="t", seeds=[value])

    found = {"a": cell(10), "b": cell(90, trained_on=True), "c": cell(20)}
    average = row_average(found, ["a", "b", "c"])
    assert average is not None and average.estimate == 15
    lacking = TableCell(interval=None, p_value=None, trained_on=False, missing=[], test="t")
    assert row_average({**found, "c": lacking}, ["a", "c"]) is None


def test_an_average_has_the_interval_of_its_columns_or_of_its_seeds() -> None:
    def cell(*seeds: float, reach: float, test: str = "a") -> TableCell:
        mean = sum(seeds) / len(seeds)
        interval = Interval(estimate=mean, low=mean - reach, high=mean + 2 * reach, level=0.95)
        return TableCell(interval=interval, p_value=None, trained_on=False, missing=[], test=test, seeds=seeds)

    same = row_average({"a": cell(40, reach=3), "b": cell(60, reach=4)}, ["a", "b"])
    assert same == Interval(estimate=50, low=46.5, high=57, level=0.95)
    one = row_average({"a": cell(40, reach=3), "b": cell(60, reach=4, test="b")}, ["a", "b"])
    assert one == Interval(estimate=50, low=47.5, high=55, level=0.95)
    rows = numpy.array([[40, 43, 41], [60, 61, 66]])
    found = {name: cell(*row, reach=1) for name, row in zip("ab", rows, strict=True)}
    several = row_average(found, ["a", "b"])
    means = rows.mean(axis=0)
    low, high = scipy.stats.t.interval(0.95, 2, means.mean(), scipy.stats.sem(means))
    assert several is not None
    assert (several.estimate, several.low, several.high) == pytest.approx((means.mean(), low, high))


@pytest.mark.parametrize("name", ["table1", "table6"])
def test_parameter_counts_equal_the_papers_without_any_run(name: str, runs: RunIndex) -> None:
    table = load_table(name)
    builder = CellBuilder(table=table, runs=runs, scale="paper", seeds=1, protocol="strict")
    counted = 0
    for row in table.rows:
        ours = builder.trainable_millions(row)
        assert (f"{ours:.3f}" if ours else "") == row.paper["params_millions"], row.values
        counted += ours is not None
    assert counted == {"table1": 18, "table6": 9}[name]


def test_the_average_reproduces_the_papers() -> None:
    def cells(**scores: float) -> dict[str, TableCell]:
        return {
            name: TableCell(
                interval=Interval(estimate=score, low=score, high=score, level=0.95),
                p_value=None,
                trained_on=False,
                missing=[],
                test=name,
                seeds=[score],
            )
            for name, score in scores.items()
        }

    # ChatGLM3 with LoRA, table 1: MRPC accuracy and F1, CoLA, ROPES exact match and F1, GSM8K
    learned = cells(a=86.67, b=90.10, c=63.56, d=74.38, e=79.41, f=44.50)
    average = row_average(learned, list(learned))
    assert average is not None and average.estimate == pytest.approx(73.10, abs=0.005)
    # table 2, tuned on ROPES: the target, then WebQ, MultiRC, MRPC, FreebaseQA
    retained = cells(ropes=74.38, webq=20.47, multirc=66.67, mrpc=70.32, freebaseqa=38.61)
    average = row_average(retained, list(retained))
    assert average is not None and average.estimate == pytest.approx(54.09, abs=0.005)
    assert row_average({}, ["a"]) is None
