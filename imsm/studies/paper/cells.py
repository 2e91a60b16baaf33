"""The cells of a table: scores with intervals and tests over seeds.

Scores are in points. A cell is the mean over seeds.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any

from imsm.evaluation.metrics import is_mean_of_scores, resolve_metric
from imsm.evaluation.statistics.intervals import Interval, macro_average_ci, seed_ci, student_ci
from imsm.evaluation.statistics.significance import holm, student_t
from imsm.models.builder import count_trainable
from imsm.pipeline.plan.plan import build_plan_model
from imsm.reporting.paired_comparison import score_interval
from imsm.reporting.runs import ComparedRun, runs_to_compare
from imsm.studies.paper.runs import RunIndex, RunRef
from imsm.studies.paper.spec import ColumnSpec, PaperTable, RowSpec

ALPHA, LEVEL = 0.05, 0.95


@dataclass(frozen=True, kw_only=True)
class TableCell:
    """A score."""

    interval: Interval | None  # the score with its interval; None while a run is missing
    p_value: float | None  # Student's t-test over seeds against the reference row; None without a test
    trained_on: bool  # whether the run was trained on this task, which is not its target
    missing: list[RunRef]
    test: str  # the evaluated task
    seeds: Sequence[float] = ()  # score of each seed
    differs: bool = False  # whether the p-value, adjusted over the table, is below ALPHA


def row_average(cells: Mapping[str, TableCell], columns: Sequence[str]) -> Interval | None:
    """Average a row's columns, except tasks it was trained on; None while a cell is missing.

    With one seed the interval is over examples, with several it is Student's over the seeds' means.
    """
    averaged = [cells[name] for name in columns if name in cells and not cells[name].trained_on]
    intervals = [cell.interval for cell in averaged if cell.interval is not None]
    if not averaged or len(intervals) < len(averaged):
        return None
    seed_counts = {len(cell.seeds) for cell in averaged}
    if seed_counts == {1}:
        return macro_average_ci(intervals, tests=[cell.test for cell in averaged])
    if len(seed_counts) > 1:
        return _point(fmean(interval.estimate for interval in intervals))
    return student_ci([fmean(scores) for scores in zip(*(cell.seeds for cell in averaged), strict=True)])


@dataclass(frozen=True, kw_only=True)
class CellBuilder:
    """Builds the cells of a table from finished runs.

    ``scale`` is "mini" or "paper", ``protocol`` "strict" or "paper_code"; seeds 0 to ``seeds`` - 1 are used.
    """

    table: PaperTable
    runs: RunIndex
    scale: str
    seeds: int
    protocol: str

    def build(self, row: RowSpec, column: ColumnSpec) -> TableCell:
        """Return a row's score in a column."""
        task = column.task
        compared, missing = self._compared_runs(row, column)
        scores = [self._score(run, column) for run in compared]
        known = [score for score in scores if score is not None]
        if missing or len(known) < len(scores):
            return TableCell(interval=None, p_value=None, trained_on=False, missing=missing, test=task)
        entry = compared[0].task_result(task)
        return TableCell(
            interval=_interval(compared, task, getattr(column, self.protocol), known),
            p_value=self._p_value(row, column, compared),
            trained_on=bool(entry.get("trained_on")) and entry.get("role") != "target",
            missing=[],
            test=task,
            seeds=known,
        )

    def trainable_millions(self, row: RowSpec) -> float | None:
        """Return a row's trainable parameters in millions, without loading weights.

        None for the original, and if they cannot be counted.
        """
        # The count is the same for every seed and column.
        run = self._find(row, self.table.spec.columns[0], seed=self.seeds - 1)
        if not run.trained:
            return None
        if run.result is not None:
            return sum(run.result["trainable_parameters"].values()) / 1e6
        model, _ = build_plan_model(self.runs.config(run.overrides))
        return None if model is None else sum(count_trainable(model).values()) / 1e6

    def _find(self, row: RowSpec, column: ColumnSpec, *, seed: int) -> RunRef:
        return self.runs.find(self.table.overrides(row, column, scale=self.scale, seed=seed))

    def _compared_runs(self, row: RowSpec, column: ColumnSpec) -> tuple[list[ComparedRun], list[RunRef]]:
        """Return the run of each seed, and the missing runs.

        The original is taken once, from any trained run that evaluated the task: its responses do not
        depend on the seed.
        """
        wanted = [self._find(row, column, seed=seed) for seed in range(self.seeds)]
        if wanted[0].trained:
            missing = [run for run in wanted if run.result is None]
            return ([] if missing else [self._load(run)[-1] for run in wanted]), missing
        same_backbone = [r for r in self.table.rows if r.values.get("backbone", "") == row.values.get("backbone", "")]
        others = [run for other in same_backbone if (run := self._find(other, column, seed=0)).trained]
        for run in others:
            if run.result is not None and column.task in run.result["evaluation"]["original"]:
                return [self._load(run)[0]], []
        # One of them suffices, so only one is reported as missing.
        return [], others[:1]

    def _load(self, run: RunRef) -> list[ComparedRun]:
        """Return the original (first) and the run itself (last)."""
        assert run.result is not None
        return runs_to_compare(run.folder, run.result, runs_root=self.runs.runs_root, siblings=False)

    def _score(self, run: ComparedRun, column: ColumnSpec) -> float | None:
        entry = run.task_result(column.task)
        metrics = entry.get("protocols", {}).get(self.protocol, {}).get("metrics", entry.get("metrics", {}))
        score = metrics.get(getattr(column, self.protocol))
        return None if score is None else float(score)

    def _p_value(self, row: RowSpec, column: ColumnSpec, compared: Sequence[ComparedRun]) -> float | None:
        """Test against the reference row over seeds; None for one seed, which shows no variance of training."""
        reference = self.table.reference_of(row)
        others, missing = ([], []) if reference is None else self._compared_runs(reference, column)
        if missing or self.seeds == 1 or not len(compared) == len(others) == self.seeds:
            return None
        scores = [[self._score(run, column) for run in side] for side in (compared, others)]
        if any(None in side for side in scores):
            return None
        test = student_t(*[[score for score in side if score is not None] for side in scores])
        return None if test is None else test.p_value


def adjust(cells: Mapping[Any, TableCell]) -> dict[Any, TableCell]:
    """Adjust the p-values over all cells by Holm's method and set ``differs``."""
    adjusted = holm({str(n): cell.p_value for n, cell in enumerate(cells.values()) if cell.p_value is not None})
    significant = [adjusted.get(str(number), 1.0) < ALPHA for number in range(len(cells))]
    return {
        key: replace(cell, differs=differs) for (key, cell), differs in zip(cells.items(), significant, strict=True)
    }


def _interval(compared: Sequence[ComparedRun], task: str, metric: str, scores: Sequence[float]) -> Interval:
    """Over examples with one seed, over seeds and examples with several; a point without predictions."""
    # The column is missing if the metric was added after the evaluation.
    column = f"score.{metric}"
    frames = [frame for run in compared if (frame := run.predictions(task)) is not None and column in frame]
    if len(frames) < len(compared):
        return _point(fmean(scores))
    if len(compared) == 1:
        interval = score_interval(compared[0], task, metric)
        assert interval is not None
        return interval
    if not is_mean_of_scores(resolve_metric(metric)):
        return student_ci(scores)
    # An example without a passage is a group by itself, named by its id.
    groups = [group or name for name, group in frames[0]["group"].items()]
    return seed_ci([100 * frame[column].to_numpy(float) for frame in frames], groups=groups)


def _point(value: float) -> Interval:
    return Interval(estimate=value, low=value, high=value, level=LEVEL)
