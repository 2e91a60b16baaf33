"""Route by task: the tuned model on its target, the original on all other tasks.

The upper bound of any choice between the two streams by task; it forgets nothing by construction.
"""

from imsm.studies.baselines.base import BaselineInfo
from imsm.studies.baselines.finished_run import FinishedRun

INFO = BaselineInfo(name="oracle_router", meaning="the tuned model on the target, the original elsewhere")


def route_to_original(run: FinishedRun, value: None, task: str) -> list[bool]:
    """Return whether each example of a task takes the original's response."""
    return [task != run.config.data.name] * len(run.eval_sets[task].prompts)
