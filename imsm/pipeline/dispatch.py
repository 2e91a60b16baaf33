"""What a run's mode means: print its plan, fetch what it needs, or carry it out."""

from __future__ import annotations

import gc
import sys
from typing import TYPE_CHECKING

from imsm.utils.paths import runs_root

if TYPE_CHECKING:
    from imsm.config.schema import RunConfig


def dispatch(config: RunConfig, *, sweep: bool = False) -> None:
    """Carry one run or sequence out, or print its plan (shorter where it is one of a sweep)."""
    if config.mode == "plan":
        gc.disable()  # importing makes much and drops nothing: a fifth of its time
        from imsm.pipeline.plan.plan import print_plan

        gc.enable()
        if config.task_sequence is not None:
            from imsm.pipeline.continual import plan_stages

            plan_stages(config, compact=sweep, overrides=task_overrides())
            return
        print_plan(config, compact=sweep, overrides=task_overrides())
        return
    from imsm.pipeline.download import check_here, prepare

    if config.mode == "download":
        prepare(config, program=sys.argv[0], arguments=sys.argv[1:])
        return
    check_here(config)
    if config.task_sequence is not None:
        from imsm.pipeline.continual import run_stages

        run_stages(config, runs_root=runs_root(), overrides=task_overrides())
        return
    from imsm.pipeline.start import start_run

    start_run(config, runs_root=runs_root(), overrides=task_overrides())


def task_overrides() -> list[str]:
    """What makes the run that is at work alone, without Hydra's own."""
    from hydra.core.hydra_config import HydraConfig

    if not HydraConfig.initialized():
        return []
    given = [str(text) for text in HydraConfig.get().overrides.task]
    return [text for text in given if text.partition("=")[0] != "sweep"]
