"""The cells of an experiment's table: what was scored, its interval, and whether it differs.

Scores are in points. A cell is the mean over seeds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

import numpy

from imsm.evaluation.metrics import resolve_metric
from imsm.evaluation.statistics.intervals import Interval, macro_average_ci, seed_ci
from imsm.evaluation.statistics.significance import student_t
from imsm.reporting.paired_comparison import compare_runs, score_interval
from imsm.reporting.runs import ComparedRun, runs_to_compare
from imsm.studies.paper.runs import RunIndex, RunRef
from imsm.studies.paper.spec import ColumnSpec, PaperTable, RowSpec

ALPHA = 0.05
MARKS = {
    "mcnemar": ("*", "McNemar's exact test on the items"),
    "bootstrap": ("°", "the paired bootstrap's 95 % interval, which leaves out 0"),
    "student": ("‡", "Student's t-test over seeds, the paper's test"),
}
"""A mark stands by a cell that differs (p < 0.05, not adjusted) from its reference."""


@dataclass(frozen=True, kw_only=True)
class TableCell:
    """One score: its interval, the kind of its mark, or why there is none."""

    interval: Interval | None
    mark: str | None
    trained_on: bool
    missing: list[RunRef]
    """The runs that it waits for."""
    test: str
    """On whose items it rests."""
    seeds: Sequence[float] = ()
    """Each seed's score."""

    @property
    def value(self) -> float | None:
        """In points; None while a run is missing."""
        return None if self.interval is None else self.interval.estimate


def build_cell(
    experiment: PaperTable, row: RowSpec, column: ColumnSpec, *, runs: RunIndex, scale: str, seeds: int, protocol: str
) -> TableCell:
    """A row's score in a column."""
    metric = getattr(column, protocol)
    arms, missing = _arms(experiment, row, column, runs=runs, scale=scale, seeds=seeds)
    if missing:
        return TableCell(interval=None, mark=None, trained_on=False, missing=missing, test=column.task)
    values = [_score(arm, column.task, metric, protocol) for arm in arms]
    known = [value for value in values if value is not None]
    if len(known) < len(values):
        return TableCell(interval=None, mark=None, trained_on=False, missing=[], test=column.task)
    entry = arms[0].task_result(column.task)
    return TableCell(
        interval=_interval(arms, column.task, metric, known),
        mark=_mark(experiment, row, column, arms, metric, runs=runs, scale=scale, seeds=seeds, protocol=protocol),
        trained_on=bool(entry.get("trained_on")) and entry.get("role") != "target",
        missing=[],
        test=column.task,
        seeds=known,
    )


def row_average(found: Mapping[str, TableCell], over: Sequence[str]) -> Interval | None:
    """A row's mean over columns, without what it was trained on; None while something is missing.

    With one seed its interval speaks of other items, with several of other trainings: Student's
    over the seeds' own means.
    """
    cells = [found[name] for name in over if name in found and not found[name].trained_on]
    intervals = [cell.interval for cell in cells if cell.interval is not None]
    if not cells or len(intervals) < len(cells):
        return None
    counts = {len(cell.seeds) for cell in cells}
    if counts == {1}:
        return macro_average_ci(intervals, tests=[cell.test for cell in cells])
    if len(counts) > 1:
        point = fmean(interval.estimate for interval in intervals)
        return Interval(estimate=point, low=point, high=point, level=0.95)
    return _over_values([fmean(each) for each in zip(*(c.seeds for c in cells), strict=True)])


def trainable_millions(experiment: PaperTable, row: RowSpec, *, runs: RunIndex, scale: str, seeds: int) -> float | None:
    """A row's trainable parameters in millions, counted without weights where no run is finished.

    None for the original, and where they cannot be counted.
    """
    column = experiment.spec.columns[0]
    run = runs.find(experiment.overrides(row, column, scale=scale, seed=seeds - 1))
    if not run.trained:
        return None
    if run.result is not None:
        return sum(run.result["trainable_parameters"].values()) / 1e6
    from imsm.models.builder import count_trainable
    from imsm.pipeline.plan.plan import build_plan_model

    model, _ = build_plan_model(runs.config(run.overrides))
    return None if model is None else sum(count_trainable(model).values()) / 1e6


def _arms(
    experiment: PaperTable, row: RowSpec, column: ColumnSpec, *, runs: RunIndex, scale: str, seeds: int
) -> tuple[list[ComparedRun], list[RunRef]]:
    """The arm of each seed, and the runs that are missing.

    The original is taken from any trained run that asked the same: its answers do not depend on
    the seed, and it stands once.
    """
    wanted = [runs.find(experiment.overrides(row, column, scale=scale, seed=seed)) for seed in range(seeds)]
    if wanted[0].trained:
        missing = [run for run in wanted if run.result is None]
        return ([] if missing else [_own_arm(run, runs) for run in wanted]), missing
    same = [other for other in experiment.rows if _backbone(other) == _backbone(row)]
    others = [
        run for other in same if (run := runs.find(experiment.overrides(other, column, scale=scale, seed=0))).trained
    ]
    for run in others:
        if run.result is not None and column.task in run.result["evaluation"]["original"]:
            arms = runs_to_compare(run.folder, run.result, runs_root=runs.runs_root, siblings=False)
            return [arms[0]], []
    return [], others[:1]


def _own_arm(run: RunRef, runs: RunIndex) -> ComparedRun:
    assert run.result is not None
    return runs_to_compare(run.folder, run.result, runs_root=runs.runs_root, siblings=False)[-1]


def _backbone(row: RowSpec) -> str:
    return row.values.get("backbone", "")


def _score(arm: ComparedRun, task: str, metric: str, protocol: str) -> float | None:
    entry = arm.task_result(task)
    found = entry.get("protocols", {}).get(protocol, {}).get("metrics", entry.get("metrics", {}))
    return None if found.get(metric) is None else float(found[metric])


def _interval(arms: Sequence[ComparedRun], task: str, metric: str, values: Sequence[float]) -> Interval:
    """With one seed over items; with several over seeds and items; a bare point without items."""
    point = fmean(values)
    frames = [arm.predictions(task) for arm in arms]
    if any(frame is None or f"score.{metric}" not in frame for frame in frames):
        return Interval(estimate=point, low=point, high=point, level=0.95)
    if len(arms) == 1:
        found = score_interval(arms[0], task, metric)
        assert found is not None
        return found[1]
    if hasattr(resolve_metric(metric), "aggregate"):
        return _over_values(values)
    tables = [100 * frame[f"score.{metric}"].to_numpy(float) for frame in frames if frame is not None]
    first = frames[0]
    assert first is not None
    return seed_ci(tables, groups=[group or name for name, group in first["group"].items()])


def _over_values(values: Sequence[float]) -> Interval:
    """Student's interval of a mean over seeds."""
    from scipy import stats

    found = numpy.asarray(values)
    error = float(found.std(ddof=1)) / len(found) ** 0.5
    half = float(stats.t.ppf(0.975, len(found) - 1)) * error
    mean = float(found.mean())
    return Interval(estimate=mean, low=mean - half, high=mean + half, level=0.95)


def _mark(
    experiment: PaperTable,
    row: RowSpec,
    column: ColumnSpec,
    arms: Sequence[ComparedRun],
    metric: str,
    *,
    runs: RunIndex,
    scale: str,
    seeds: int,
    protocol: str,
) -> str | None:
    """Which test tells the row from its reference; None if none does."""
    reference = experiment.reference_of(row)
    if reference is None:
        return None
    others, missing = _arms(experiment, reference, column, runs=runs, scale=scale, seeds=seeds)
    if missing or not others:
        return None
    if seeds > 1 and len(arms) == len(others) == seeds:
        scores = [[_score(a, column.task, metric, protocol) for a in side] for side in (arms, others)]
        if any(None in side for side in scores):
            return None
        tested = student_t(*[[v for v in side if v is not None] for side in scores])
        return "student" if tested and tested.p_value is not None and tested.p_value < ALPHA else None
    return _over_items(arms[0], others[0], column.task, metric)


def _over_items(arm: ComparedRun, other: ComparedRun, task: str, metric: str) -> str | None:
    """Of a total (F1, correlations) the bootstrap: its items are neither right nor wrong."""
    try:
        found = compare_runs(arm, other, task=task, metric=metric, marked=False)
    except KeyError:
        return None
    if found is None:
        return None
    if found.test is not None and not hasattr(resolve_metric(metric), "aggregate"):
        return "mcnemar" if found.test.p_value < ALPHA else None
    return "bootstrap" if found.difference.low > 0 or found.difference.high < 0 else None
