"""The verdict on a run: did it forget more than a margin? Tables, JSON, and the number of items that would decide.

All changes are in points of a test's headline metric; a negative change is a loss, whatever the metric's direction.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import ceil
from typing import Any

import numpy
import pandas
from rich.console import Console

from imsm.evaluation.metrics import MetricModule, aggregate, is_mean_of_scores
from imsm.evaluation.statistics.verdict import (
    Decision,
    PairCounts,
    Verdict,
    change_bounds,
    count_pairs,
    decide,
    pseudo_values,
)
from imsm.reporting.paired_comparison import aggregate_statistic, compute_retention, metric_module, scored_texts
from imsm.reporting.render.formatting import MISSING, format_interval, format_number, format_p_value
from imsm.reporting.render.table import Table, print_table
from imsm.reporting.runs import ComparedRun, headline
from imsm.utils.errors import UserError

AT_CHANCE = "the original is not above chance by two standard errors: this test cannot show forgetting"
TRAINED_ON = "the run was trained on it"
Pair = tuple[ComparedRun, ComparedRun]
"""A run and its original, with predictions of the same examples."""


@dataclass(frozen=True, kw_only=True)
class CheckedTest:
    """One test of a verdict.

    Attributes:
        task: Name of the test, or of the target.
        metric: Headline metric.
        items: Number of examples.
        original: The original's score in points; None for the target's required score.
        score: The run's score in points.
        margin: Largest loss that is allowed, in points; for the target, below ``required``.
        required: The target's required score; None for a forgetting test.
        decision: Change, p-values and verdict.
        low: Lower 95 % bound of the change, or of the target's score.
        high: Upper 95 % bound.
        floor: Share of examples whose answer changed between repeated generations; None without them.
        needed: Number of examples that would decide with a probability of 80 %; None if decided or unknown.
    """

    task: str
    metric: str
    items: int
    original: float | None
    score: float
    margin: float
    required: float | None
    decision: Decision
    low: float
    high: float
    floor: float | None
    needed: int | None


@dataclass(frozen=True, kw_only=True)
class Check:
    """A verdict with the tests that it is of, and the reason for each task that does not count."""

    run: str
    verdict: Verdict
    margin: float
    repeats: int
    tests: list[CheckedTest]
    not_counted: dict[str, str]

    def to_json(self, available: Mapping[str, int | None]) -> dict[str, Any]:
        """Return the verdict as JSON values; ``available`` is the size of the complete test set by test."""
        return {
            "verdict": str(self.verdict),
            "run": self.run,
            "margin": self.margin,
            "repeats": self.repeats,
            "tests": {_key(test): _json_values(test, available.get(test.task)) for test in self.tests},
            "not_counted": self.not_counted,
        }


def check_run(
    pair: Pair, *, margin: float, target_at_least: float | None = None, repeats: Sequence[Pair] = ()
) -> Check:
    """Compare a run with its original and decide.

    Args:
        pair: The run and its original.
        margin: Largest loss that is allowed, in points.
        target_at_least: Score in points that the target must reach, or None.
        repeats: The same models with answers generated again. The verdict holds for each generation.

    Raises:
        UserError: Predictions are missing, damaged or of other examples, or the target was not evaluated.
    """
    run, original = pair
    entries = run.result["evaluation"]["tasks"]
    # by name in the table: task and required score
    plan: dict[str, tuple[str, float | None]] = {}
    not_counted = {}
    for task, entry in entries.items():
        if entry["role"] == "target":
            continue
        if (reason := _reason_not_to_count(run, original, task)) is None:
            plan[task] = (task, None)
        else:
            not_counted[task] = reason
    if target_at_least is not None:
        target = _target_of(entries, target_at_least)
        plan[f"{target} (target)"] = (target, target_at_least)
    counts: dict[str, list[PairCounts]] = {}
    margins = dict.fromkeys(plan, margin)
    for key, (task, required) in plan.items():
        if required is None:
            counts[key] = [_change_counts(*each, task) for each in (pair, *repeats)]
        else:
            found = [_target_counts(one, task, required) for one, _ in (pair, *repeats)]
            counts[key], margins[key] = [each for each, _ in found], found[0][1]
    verdict, decisions = decide(counts, margins=margins)
    # a target's score alone does not show forgetting
    if verdict is Verdict.PASS and not any(required is None for _, required in plan.values()):
        verdict = Verdict.INSUFFICIENT_EVIDENCE
    return Check(
        run=run.folder.name,
        verdict=verdict,
        margin=margin,
        repeats=len(repeats),
        tests=[
            _checked_test(
                (pair, *repeats),
                task,
                counts=counts[key],
                margin=margins[key],
                decision=decisions[key],
                required=required,
            )
            for key, (task, required) in plan.items()
        ],
        not_counted=not_counted,
    )


def render_check(check: Check, *, available: Mapping[str, int | None], console: Console | None = None) -> None:
    """Print the verdict, a table of the tests, and what would decide.

    ``available`` is the size of the complete test set by test, None where it is unknown.
    """
    console = console or Console()
    console.print(f"{check.verdict}: {_summary(check)}", style="bold", highlight=False, markup=False, soft_wrap=True)
    table = Table.from_records([_row(test, repeated=bool(check.repeats)) for test in check.tests])
    notes = [
        f"not counted: {', '.join(task for task, each in check.not_counted.items() if each == reason)}: {reason}"
        for reason in dict.fromkeys(check.not_counted.values())
    ]
    notes += [line for test in check.tests if (line := _advice(test, available.get(test.task))) is not None]
    notes.append(
        "Change in points, with one-sided 95 % bounds of paired exact tests; PASS: every lower bound is above "
        f"−{check.margin:g}; FAIL: a test is significantly below it (p after Holm's correction at most 0.05)."
    )
    if check.repeats:
        notes.append(
            f"floor: share of examples whose answer differs between {check.repeats + 1} generations with other batch "
            "sizes; bounds and p-values are the widest of all of them."
        )
    print_table(Table(columns=table.columns, rows=table.rows, notes=notes), console)


def _reason_not_to_count(run: ComparedRun, original: ComparedRun, task: str) -> str | None:
    if run.task_result(task).get("trained_on"):
        return TRAINED_ON
    _frames(run, original, task)
    retention = compute_retention(run, original, task=task, metric=headline(run.task_result(task)))
    return AT_CHANCE if retention is not None and retention.retained is None else None


def _frames(run: ComparedRun, original: ComparedRun, task: str) -> tuple[pandas.DataFrame, pandas.DataFrame]:
    """Return the predictions of both in one order.

    Raises:
        UserError: They are missing, damaged or of other examples.
    """
    frames = []
    for each in (run, original):
        frame = each.predictions(task)
        if frame is None:
            raise UserError(each.load_error(task) or f"{each.folder}: has no predictions of {task}; evaluate it again")
        frames.append(frame)
    after, before = frames
    if after.empty or set(after.index) != set(before.index):
        raise UserError(
            f"{run.folder}: predictions of {task} are of other examples than those of {original.folder}; run the same "
            "command with mode=evaluate"
        )
    return after, before.loc[after.index]


def _change_counts(run: ComparedRun, original: ComparedRun, task: str) -> PairCounts:
    """Return the counts of a forgetting test."""
    after, before = _frames(run, original, task)
    metric = headline(run.task_result(task))
    module = metric_module(run, metric)
    sign = 1 if module.INFO.higher_is_better else -1
    if is_mean_of_scores(module):
        changes = (after[f"score.{metric}"] - before[f"score.{metric}"]).to_numpy(float)
        largest = max(1.0, float(numpy.abs(changes).max()))
        scale = module.INFO.scale
        return count_pairs(sign * scale * changes, groups=_groups(after), largest=scale * largest)
    statistics = _statistic(run, task, metric, after), _statistic(original, task, metric, before)
    texts = scored_texts(run, task, metric, after)
    values = pseudo_values(
        lambda rows: statistics[0](rows) - statistics[1](rows),
        items=len(after),
        kinds=list(zip(texts, scored_texts(original, task, metric, before), _accepted(after), strict=True)),
    )
    return count_pairs(sign * values, groups=_groups(after), largest=_largest_change(module, texts, after))


def _target_counts(run: ComparedRun, task: str, required: float) -> tuple[PairCounts, float]:
    """Return the counts of the target's score against a required one, and their margin."""
    predictions = run.predictions(task)
    if predictions is None:
        raise UserError(run.load_error(task) or f"{run.folder}: has no predictions of {task}; evaluate it again")
    metric, groups = headline(run.task_result(task)), _groups(predictions)
    module = metric_module(run, metric)
    scale, scores = module.INFO.scale, predictions[f"score.{metric}"].to_numpy(float)
    if is_mean_of_scores(module) and not required <= scale:
        raise UserError(f"--target-at-least {required:g}: {metric} is at most {scale:g}")
    if is_mean_of_scores(module):
        return count_pairs(scale * (scores - 1), groups=groups, largest=scale, can_gain=False), scale - required
    texts = scored_texts(run, task, metric, predictions)
    kinds = list(zip(texts, _accepted(predictions), strict=True))
    statistic = _statistic(run, task, metric, predictions)
    values = pseudo_values(statistic, items=len(predictions), kinds=kinds)
    largest = _largest_change(module, texts, predictions)
    return count_pairs(values - required, groups=groups, largest=largest), 0.0


def _statistic(
    run: ComparedRun, task: str, metric: str, predictions: pandas.DataFrame
) -> Callable[[numpy.ndarray], float]:
    found = aggregate_statistic(run, task, metric, predictions)
    assert found is not None
    return found


def _largest_change(module: MetricModule, texts: Sequence[str], predictions: pandas.DataFrame) -> float:
    """Return the change of an aggregated metric if one answer becomes wrong, times N, in points.

    The largest change over one correct answer of each kind of references; 100 without such an answer.
    """
    references = list(predictions["references"])
    answers = list(dict.fromkeys(accepted[0] for accepted in references))
    total, changes = aggregate(module, texts, references), [0.0]
    seen = set()
    for index, accepted in enumerate(references):
        wrong = next((text for text in answers if module.score(text, accepted) < 1), None)
        if tuple(accepted) in seen or wrong is None or module.score(texts[index], accepted) < 1:
            continue
        seen.add(tuple(accepted))
        changed = [*texts[:index], wrong, *texts[index + 1 :]]
        changes.append(abs(aggregate(module, changed, references) - total))
    return max(module.INFO.scale, module.INFO.scale * len(texts) * max(changes))


def _accepted(predictions: pandas.DataFrame) -> list[tuple[str, ...]]:
    return [tuple(accepted) for accepted in predictions["references"]]


def _groups(predictions: pandas.DataFrame) -> list[Any]:
    # an example without a passage is a cluster by itself
    return [group or name for name, group in zip(predictions.index, predictions["group"], strict=True)]


def _target_of(entries: Mapping[str, Mapping[str, Any]], required: float) -> str:
    target = next((name for name, entry in entries.items() if entry["role"] == "target"), None)
    if target is None:
        raise UserError(f"--target-at-least {required:g}: the target of this run was not evaluated")
    return target


def _checked_test(
    pairs: Sequence[Pair],
    task: str,
    *,
    counts: Sequence[PairCounts],
    margin: float,
    decision: Decision,
    required: float | None,
) -> CheckedTest:
    run, original = pairs[0]
    entry = run.task_result(task)
    metric = headline(entry)
    low, high = change_bounds(counts, margin=margin)
    score = run.score(task, metric)
    assert score is not None
    # the target's bounds are of its score, the others' of the change
    shift = 0.0 if required is None else required + margin
    needed = None
    if decision.verdict is Verdict.INSUFFICIENT_EVIDENCE and decision.factor is not None:
        needed = max(entry["num_examples"] + 1, ceil(entry["num_examples"] * decision.factor))
    return CheckedTest(
        task=task,
        metric=metric,
        items=entry["num_examples"],
        original=original.score(task, metric) if required is None else None,
        score=score,
        margin=margin,
        required=required,
        decision=decision,
        low=low + shift,
        high=high + shift,
        floor=_floor(pairs, task) if len(pairs) > 1 else None,
        needed=needed,
    )


def _floor(pairs: Sequence[Pair], task: str) -> float:
    """Return the share of examples whose answer changes between generations, of the run or of its original."""
    changed: Any = False
    for runs in zip(*pairs, strict=True):
        frames = [run.predictions(task) for run in runs]
        answers = [frame["answer"].loc[frames[0].index] for frame in frames if frame is not None]
        changed = changed | (pandas.concat(answers, axis=1).nunique(axis=1) > 1)
    return float(changed.mean())


def _key(test: CheckedTest) -> str:
    return test.task if test.required is None else f"{test.task} (target)"


def _json_values(test: CheckedTest, available: int | None) -> dict[str, Any]:
    decision = test.decision
    return {
        "verdict": str(decision.verdict),
        "metric": test.metric,
        "items": test.items,
        "original": test.original,
        "score": test.score,
        "required": test.required,
        "change": decision.estimate if test.required is None else None,
        "low": test.low,
        "high": test.high,
        "p_pass": decision.p_pass,
        "p_fail": decision.p_fail,
        "floor": test.floor,
        "items_to_decide": test.needed,
        "items_available": available,
    }


def _summary(check: Check) -> str:
    forgetting = [test for test in check.tests if test.required is None]
    failed = [_key(test) for test in check.tests if test.decision.verdict is Verdict.FAIL]
    undecided = [_key(test) for test in check.tests if test.decision.verdict is Verdict.INSUFFICIENT_EVIDENCE]
    if failed:
        return f"{check.run} is significantly worse than allowed on {', '.join(failed)}"
    if not forgetting:
        return f"no test of {check.run} can show forgetting"
    if undecided:
        return f"{check.run} is undecided on {', '.join(undecided)}"
    target = "" if len(forgetting) == len(check.tests) else ", and reaches the required target score"
    return f"{check.run} loses less than {check.margin:g} points on each of {len(forgetting)} tests{target}"


def _row(test: CheckedTest, *, repeated: bool) -> dict[str, str]:
    value = test.score if test.required is not None else test.decision.estimate
    row = {
        "test": _key(test),
        "metric": test.metric,
        "items": str(test.items),
        "original": format_number(test.original),
        "run": format_number(test.score),
        "change [low, high]": format_interval(value, test.low, test.high, signed=test.required is None),
        "p (Holm)": format_p_value(test.decision.p_fail),
    }
    if repeated:
        row["floor"] = MISSING if test.floor is None else f"{format_number(100 * test.floor)} %"
    return {**row, "verdict": str(test.decision.verdict).lower().replace("_", " ")}


def _advice(test: CheckedTest, available: int | None) -> str | None:
    if test.decision.verdict is not Verdict.INSUFFICIENT_EVIDENCE:
        return None
    if test.needed is None:
        return f"{_key(test)}: the change is too close to the limit for any number of examples to decide"
    known = "the size of the test set is not known here"
    if available is not None:
        enough = "enough" if available >= test.needed else "too few"
        known = f"the test set has {available:,}, {enough}"
        if enough == "enough":
            known += f"; evaluate more with evaluation.limit_by_task={{{test.task}: {test.needed}}}"
    return f"{_key(test)}: about {test.needed:,} examples would decide ({known})"
