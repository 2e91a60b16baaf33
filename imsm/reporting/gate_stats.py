"""Statistics of the gate over examples, positions and tasks, with warnings."""

from collections.abc import Mapping, Sequence

import numpy
import pandas

from imsm.evaluation.statistics.significance import roc_auc
from imsm.reporting.paired_comparison import CORRECT
from imsm.reporting.runs import ComparedRun

SATURATED = 0.02
"""A gate closer than this to 0 or 1 passes one stream only."""
UNCHANGED = 0.02
"""A gate whose mean moved less than this counts as unchanged by training."""


def gate_table(run: ComparedRun, tasks: Sequence[str], *, metrics: Mapping[str, str]) -> pandas.DataFrame:
    """Return statistics of the original's gate weight, one row per task with gate values.

    The columns are task, examples, mean, sd (over examples), 5 % and 95 % quantiles, means of correct and wrong
    answers by the headline ``metrics``, and AUC, how well the gate separates them.
    """
    rows = []
    for task in tasks:
        predictions = run.predictions(task)
        if predictions is None or predictions["gate_mean"].isna().all():
            continue
        # an empty response has no gate value
        gated = predictions[predictions["gate_mean"].notna()]
        gate = gated["gate_mean"].to_numpy(float)
        correct = gated[f"score.{metrics[task]}"].to_numpy(float) >= CORRECT
        rows.append(
            {
                "task": task,
                "examples": len(gate),
                "mean": gate.mean(),
                "sd": gate.std(),
                "5 %": numpy.quantile(gate, 0.05),
                "95 %": numpy.quantile(gate, 0.95),
                "correct": gate[correct].mean() if correct.any() else None,
                "wrong": gate[~correct].mean() if not correct.all() else None,
                "AUC": roc_auc(gate, correct),
            }
        )
    return pandas.DataFrame(rows)


def format_decided(counts: Mapping[str, int]) -> str:
    """Return the shares of the streams that queries continued with, such as "93 % tuned, 5 % original, 2 % both"."""
    total = max(1, sum(counts.values()))
    return ", ".join(f"{100 * count / total:.0f} % {name}" for name, count in counts.items())


def gate_by_position(run: ComparedRun, task: str) -> numpy.ndarray | None:
    """Return the mean gate weight at each generated position (P,), or None.

    Ends at the first position that fewer than a tenth of the responses (or fewer than three) reach.
    """
    predictions = run.predictions(task)
    weights = [] if predictions is None else [gates for gates in predictions["gate_per_token"] if gates]
    if not weights:
        return None
    # the mean of the few longest responses is noise, and not of the same examples
    minimum = min(max(3, len(weights) // 10), len(weights))
    means = []
    for position in range(max(map(len, weights))):
        reached = [gates[position] for gates in weights if len(gates) > position]
        if len(reached) < minimum:
            break
        means.append(float(numpy.mean(reached)))
    return numpy.array(means)


def gate_warnings(run: ComparedRun, tasks: Sequence[str], *, start: float | None) -> list[str]:
    """Return what limits the interpretation of the gate, one sentence each.

    ``start`` is the gate's mean at the first training step, None if it was not logged.
    """
    tables = [table for task in tasks if (table := run.predictions(task)) is not None]
    means = [table["gate_mean"].dropna().to_numpy(float) for table in tables]
    values = numpy.concatenate(means) if means else numpy.empty(0)
    if not values.size:
        return []
    warnings = []
    saturated = float(numpy.mean((values < SATURATED) | (values > 1 - SATURATED)))
    is_skipping = any(run.task_result(task).get("decided") for task in tasks)
    if saturated > 0.5 and not is_skipping:
        warnings.append(
            f"{run.label}: the gate is saturated on {100 * saturated:.0f} % of the examples, where only one stream "
            "is used."
        )
    mean = float(numpy.mean(values))
    if start is not None and abs(mean - start) < UNCHANGED:
        warnings.append(
            f"{run.label}: the gate's mean ({mean:.3f}) is close to its value at the start of training ({start:.3f}); "
            "its effect beyond PEFT may be that of a constant mix of both streams."
        )
    return warnings
