"""What the gate did: its values over items, positions and tasks, of right and wrong answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy

from imsm.evaluation.statistics.significance import roc_auc
from imsm.reporting.runs import ComparedRun

if TYPE_CHECKING:
    import pandas

SATURATED = 0.02
"""A gate nearer to 0 or 1 than this passes one stream alone."""
STILL = 0.02
"""A gate whose mean stays so near to its start has not moved."""


def gate_table(arm: ComparedRun, tasks: Sequence[str], *, metric: dict[str, str]) -> pandas.DataFrame:
    """The weight of the original memory per task: its spread, and by right and wrong answers.

    Args:
        arm: with a gate.
        tasks: in the order of the rows.
        metric: the headline of each task, whose items at 1/2 and above are right.

    Returns:
        A row per task with gates: task, items, mean, sd (over items), low and high (5 % and 95 %),
        right, wrong (means), and auc: how well the gate alone tells right answers from wrong.
    """
    import pandas

    rows = []
    for task in tasks:
        items = arm.items(task)
        if items is None:
            continue
        gated = items[items["gate_mean"].notna()]
        if gated.empty:
            continue
        gate = gated["gate_mean"].to_numpy(float)
        right = gated[f"score.{metric[task]}"].to_numpy(float) >= 0.5
        rows.append(
            {
                "task": task,
                "items": len(gate),
                "mean": gate.mean(),
                "sd": gate.std(),
                "low": numpy.quantile(gate, 0.05),
                "high": numpy.quantile(gate, 0.95),
                "right": gate[right].mean() if right.any() else None,
                "wrong": gate[~right].mean() if not right.all() else None,
                "auc": roc_auc(gate, right),
            }
        )
    return pandas.DataFrame(rows)


def gate_by_position(arm: ComparedRun, task: str) -> numpy.ndarray | None:
    """The mean weight of the original memory at each generated position, (P,).

    Positions that fewer than a tenth of the answers (and fewer than three) reach are left out;
    None without gates.
    """
    items = arm.items(task)
    lists = [] if items is None else [gates for gates in items["gate_per_token"] if gates]
    if not lists:
        return None
    least = max(3, len(lists) // 10)
    longest = max(map(len, lists))
    means = []
    for place in range(longest):
        reached = [gates[place] for gates in lists if len(gates) > place]
        if len(reached) < min(least, len(lists)):
            break
        means.append(float(numpy.mean(reached)))
    return numpy.array(means)


def gate_warnings(arm: ComparedRun, tasks: Sequence[str], *, start: float | None) -> list[str]:
    """What a reader must know before the gate is interpreted; a sentence each.

    Args:
        arm: with a gate.
        tasks: of the card.
        start: the gate's mean at the first step of training; None if it was not logged.
    """
    tables = [items for task in tasks if (items := arm.items(task)) is not None]
    means = [table["gate_mean"].dropna().to_numpy(float) for table in tables]
    values = numpy.concatenate(means) if means else numpy.empty(0)
    if not values.size:
        return []
    found = []
    shut = float(numpy.mean((values < SATURATED) | (values > 1 - SATURATED)))
    if shut > 0.5:
        found.append(
            f"{arm.label}: the gate is saturated on {100 * shut:.0f} % of the items: one stream alone answers there."
        )
    mean = float(numpy.mean(values))
    if start is not None and abs(mean - start) < STILL:
        found.append(
            f"{arm.label}: the gate's mean, {mean:.3f}, is where training began ({start:.3f}): "
            "what the arm does beyond PEFT may be the constant mix of both streams."
        )
    return found
