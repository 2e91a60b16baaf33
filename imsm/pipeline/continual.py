"""A sequence carried out: its stages in order, each an ordinary run, then its summary."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from imsm.config.identity import run_name
from imsm.config.stages import expand_stages
from imsm.distributed.rendezvous import detect_process_group
from imsm.pipeline.run_status import load_if_finished
from imsm.pipeline.start import start_run
from imsm.pipeline.train import check_resumable_method, parent_hash
from imsm.utils.errors import UserError
from imsm.utils.run_dir import RunDir

if TYPE_CHECKING:
    from imsm.config.schema import RunConfig


def run_stages(config: RunConfig, *, runs_root: Path, overrides: Sequence[str] = ()) -> None:
    """Train and judge every stage that is not finished, and say what each one forgot.

    Args:
        config: of the sequence.
        runs_root: under which all runs lie.
        overrides: of the command, for the lines that start it on several nodes.

    Raises:
        UserError: as of `start`; or the model that a finished stage came from is another one now.
        RunError: as of `start`.
        KeyboardInterrupt: stopped by hand; the same command goes on.
    """
    stages = expand_stages(config)
    if config.method.trainable:
        check_resumable_method(config)
    for number, stage in enumerate(stages, start=1):
        if config.method.trainable:
            print(f"\nstage {number} of {len(stages)}: {stage.data.name}", flush=True)
        if load_if_finished(stage, runs_root=runs_root) is not None:
            _check_start(stage, runs_root=runs_root)
            print(f"{run_name(stage)}: is finished")
            continue
        start_run(stage, runs_root=runs_root, overrides=overrides)
    group = detect_process_group()
    if config.method.trainable and (group is None or group.rank == 0):
        from imsm.reporting.continual.report import report

        report(runs_root / run_name(stages[-1]))


def plan_stages(config: RunConfig, *, compact: bool, overrides: Sequence[str] = ()) -> None:
    """Print the plan of every stage; the first one's is a page, unless ``compact``."""
    from imsm.pipeline.plan.plan import print_plan

    stages = expand_stages(config)
    if config.method.trainable:
        check_resumable_method(config)
    for number, stage in enumerate(stages, start=1):
        before = f", after {' and '.join(stage.previous_stage.tasks)}" if stage.previous_stage is not None else ""
        print(f"stage {number} of {len(stages)}: {stage.data.name}{before}")
        print_plan(stage, compact=compact or number > 1, overrides=overrides)


def _check_start(stage: RunConfig, *, runs_root: Path) -> None:
    """A finished stage stands only as long as the model that it started from.

    Raises:
        UserError: the stage before was trained anew since.
    """
    if stage.previous_stage is None:
        return
    run = RunDir(runs_root / run_name(stage))
    before = runs_root / stage.previous_stage.run
    began = json.loads(run.inputs.read_text(encoding="utf-8"))
    if began.get("start") != parent_hash(before):
        raise UserError(
            f"{run.path}: began from another model than {before.name} holds now. Remove that "
            "folder to train this stage anew"
        )
