"""Who knows which task an item is from: the tuned model on its target, the original elsewhere.

The most that any choice between the two streams by task can give; it forgets nothing by
construction.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from imsm.studies.baselines.base import BaselineInfo

if TYPE_CHECKING:
    from imsm.studies.baselines.finished_run import FinishedRun

INFO = BaselineInfo(name="oracle_router", meaning="the tuned model on the target, the original elsewhere")


def route_to_original(run: FinishedRun, value: None, task: str) -> list[bool]:
    """Whether each item of a task is the original's."""
    return [task != run.config.data.name] * len(run.eval_sets[task].prompts)
