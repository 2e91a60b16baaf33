"""A query that looks like those the adapter was trained on goes to the tuned model, others do not.

    s(x) = min over training queries i of | q_o(x) - q_o(i) |      q_o: mean original memory
    the original answers where s(x) > τ, the 95th percentile of s on training queries held out

It needs the original stream alone, before anything is generated: a siamese model with a detector
in place of a gate.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from imsm.studies.baselines.base import BaselineInfo
from imsm.studies.baselines.query_distance import QueryDistances, compute_query_distances

if TYPE_CHECKING:
    from imsm.studies.baselines.finished_run import FinishedRun

INFO = BaselineInfo(
    name="query_router", meaning="the original where a query is farther from the training queries than τ"
)


def route_to_original(run: FinishedRun, value: None, task: str) -> list[bool]:
    """Whether each item of a task is the original's."""
    found: QueryDistances = compute_query_distances(run)
    return [each > found.threshold for each in found.by_task[task]]
