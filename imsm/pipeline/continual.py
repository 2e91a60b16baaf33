"""Task sequences: plan or execute each stage as an ordinary run, then write a summary."""

from collections.abc import Sequence
from pathlib import Path

from imsm.config.identity import run_name
from imsm.config.schema import RunConfig
from imsm.config.stages import expand_stages
from imsm.distributed.rendezvous import detect_process_group
from imsm.pipeline.plan.plan import print_plan
from imsm.pipeline.run_status import load_if_finished
from imsm.pipeline.start import start_run
from imsm.pipeline.train import check_resumable_method, parent_hash
from imsm.utils.errors import UserError
from imsm.utils.run_dir import RunDir, read_input_hashes


def run_stages(config: RunConfig, *, runs_root: Path, overrides: Sequence[str] = ()) -> None:
    """Train and evaluate every unfinished stage, then report what each stage forgot.

    Raises:
        UserError: As for `start_run`; or the parent of a finished stage was trained again.
        RunError: As for `start_run`.
        KeyboardInterrupt: Interrupted; the same command resumes.
    """
    stages = expand_stages(config)
    if config.method.trainable:
        check_resumable_method(config)
    for number, stage in enumerate(stages, start=1):
        if config.method.trainable:
            print(f"\nstage {number} of {len(stages)}: {stage.data.name}", flush=True)
        # a finished stage is checked against its parent before it is skipped: its weights may be stale
        if load_if_finished(stage, runs_root=runs_root) is not None:
            _check_parent(stage, runs_root=runs_root)
            print(f"{run_name(stage)}: already finished")
            continue
        start_run(stage, runs_root=runs_root, overrides=overrides)
    group = detect_process_group()
    # every process of a torchrun group executes this function; one writes the report
    if config.method.trainable and (group is None or group.rank == 0):
        from imsm.reporting.continual.report import write_sequence_report  # imports matplotlib

        write_sequence_report(runs_root / run_name(stages[-1]))


def plan_stages(config: RunConfig, *, compact: bool, as_json: bool = False, overrides: Sequence[str] = ()) -> None:
    """Print the plan of a run, or of every stage of a sequence (the first stage in full); see `print_plan`."""
    if config.task_sequence is None:
        print_plan(config, compact=compact, as_json=as_json, overrides=overrides)
        return
    stages = expand_stages(config)
    if config.method.trainable:
        check_resumable_method(config)
    for number, stage in enumerate(stages, start=1):
        parents = f", after {' and '.join(stage.previous_stage.tasks)}" if stage.previous_stage is not None else ""
        if not as_json:
            print(f"stage {number} of {len(stages)}: {stage.data.name}{parents}")
        print_plan(stage, compact=compact or number > 1, as_json=as_json, overrides=overrides)


def _check_parent(stage: RunConfig, *, runs_root: Path) -> None:
    """Check that the previous stage still has the weights that a finished stage started from.

    Raises:
        UserError: The previous stage was trained again.
    """
    if stage.previous_stage is None:
        return
    run = RunDir(runs_root / run_name(stage))
    parent = runs_root / stage.previous_stage.run
    if read_input_hashes(run, ["start"])["start"] != parent_hash(parent):
        raise UserError(
            f"{run.path}: {parent.name} was trained again since this stage started from it; remove this folder to "
            "train the stage again"
        )
