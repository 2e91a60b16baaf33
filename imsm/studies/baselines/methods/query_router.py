"""Route by query: queries close to the training queries go to the tuned model, others to the original.

    s(x) = min over training queries i of | q_o(x) - q_o(i) |      q_o: mean original hidden state
    the original responds if s(x) > tau, the 95th percentile of s on held-out training queries

It needs the original stream only, before generation: a siamese model with a detector instead of a gate.
"""

from imsm.studies.baselines.base import BaselineInfo
from imsm.studies.baselines.finished_run import FinishedRun
from imsm.studies.baselines.query_distance import compute_query_distances

INFO = BaselineInfo(
    name="query_router", meaning="the original if a query is farther than tau from the training queries"
)


def route_to_original(run: FinishedRun, value: None, task: str) -> list[bool]:
    """Return whether each example of a task takes the original's response."""
    distances = compute_query_distances(run)
    return [distance > distances.threshold for distance in distances.by_task[task]]
