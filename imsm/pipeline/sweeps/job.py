"""The task function that Hydra calls for each job of a sweep; a failure ends only its own job.

A failed job prints its error, and records it in its run folder (for `imsm compare`) and in the
sweep's folder (for the command that started the sweep).
"""

import gc
import os
import sys
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, ListConfig, OmegaConf

from imsm.config.schema import RunConfig
from imsm.config.validate import load_config
from imsm.pipeline.continual import plan_stages, run_stages
from imsm.pipeline.download import check_offline_files, download
from imsm.pipeline.run import run_experiment
from imsm.pipeline.run_status import (
    belongs_to,
    clear_failure,
    load_if_finished,
    run_dir_of,
    sweep_objectives,
    write_failure,
)
from imsm.pipeline.start import run_distributed
from imsm.pipeline.sweeps.status import JobOutcome, SweepDir, job_command
from imsm.utils.control_characters import escape_controls
from imsm.utils.errors import RunError, UserError, file_error
from imsm.utils.messages import format_value
from imsm.utils.paths import runs_root


@dataclass(frozen=True, kw_only=True)
class SweepJob:
    """Execute a configuration that Hydra composed; submitit pickles it for another process.

    Args:
        config_dir: Folder of custom options (`--config-dir`).
        sweep: Folder for the status of each job.
        several: Whether the sweep has more than one job.
        plan_as_json: Whether a plan is printed as one line of JSON.
    """

    config_dir: Path | None
    sweep: SweepDir
    several: bool
    plan_as_json: bool = False

    def __call__(self, cfg: DictConfig) -> float | list[float] | None:
        """Execute one job; return the values that a search maximizes, or None without one."""
        number, overrides, goals = _current_job()
        options = [text for text in overrides if text.partition("=")[0] != "sweep"]
        root = runs_root()
        skipped = False
        objective: float | list[float] | None = None
        try:
            config = load_config(cfg, config_dir=self.config_dir)
            if goals == 2 and not set(config.tasks) - {config.data.name}:
                raise UserError(
                    f"evaluation.tasks={format_value(config.evaluation.tasks)}: sweep=optuna searches for the target "
                    "and for the forgetting tests; add one, or set hydra.sweeper.direction=maximize"
                )
            folder = run_dir_of(config, runs_root=root)
            if config.mode == "plan":
                plan_stages(config, compact=self.several, as_json=self.plan_as_json, overrides=options)
            elif config.mode == "download":
                clear_failure(folder)
                download(config, sys.argv[1:])
            else:
                # before the run, which would make every job look finished
                skipped = load_if_finished(config, runs_root=root) is not None
                clear_failure(folder)
                check_offline_files(config)
                if config.task_sequence is not None:
                    run_stages(config, runs_root=root, overrides=options)
                elif not run_distributed(config, runs_root=root, overrides=options):
                    run_experiment(config, runs_root=root, command=job_command(overrides, config_dir=self.config_dir))
                clear_failure(folder)
                if (result := load_if_finished(config, runs_root=root)) is not None:
                    objective = sweep_objectives(result, config.data.name, goals=goals)
            outcome = JobOutcome(
                number=number, overrides=overrides, state="skipped" if skipped else "done", objective=objective
            )
        except (Exception, SystemExit) as error:
            if isinstance(error, SystemExit) and "SUBMITIT_FOLDER" in os.environ:
                raise  # submitit requeues the job
            outcome = self._failed(error, cfg, number, overrides)
        # also for a failed job: a missing file means that the process died
        self.sweep.write_status(outcome)
        if outcome.state == "failed":
            gc.collect()  # after the except block: its traceback references the failed run's tensors
            if torch.cuda.is_initialized():
                torch.cuda.empty_cache()
        return outcome.objective

    def _failed(self, error: BaseException, cfg: DictConfig, number: int, overrides: list[str]) -> JobOutcome:
        """Print the error, record it in the run folder, and return the job's outcome."""
        error = file_error(error) or error
        if isinstance(error, UserError | RunError):
            message = str(error)
            print(escape_controls(f"imsm: {message}"), file=sys.stderr)
        else:
            traceback.print_exception(error)
            message = " ".join(f"{type(error).__name__}: {error}".split())
        code = 2 if isinstance(error, UserError) else 1
        try:
            config = load_config(cfg, config_dir=self.config_dir)
        except UserError:
            pass  # an invalid configuration has no run folder
        else:
            record_failure(config, overrides, error=message, exit_code=code, config_dir=self.config_dir)
        return JobOutcome(number=number, overrides=overrides, state="failed", exit_code=code, error=message)


def record_failure(
    config: RunConfig, overrides: list[str], *, error: str, exit_code: int, config_dir: Path | None
) -> None:
    """Write `failure.json` to a run's folder, unless the folder belongs to another run."""
    folder = run_dir_of(config, runs_root=runs_root())
    if config.mode != "plan" and (config.run_dir is None or belongs_to(config, folder)):
        command = job_command(overrides, config_dir=config_dir)
        write_failure(folder, error=error, exit_code=exit_code, command=command)


def number_of_goals(hydra: Any) -> int:
    """Return how many values a job's search maximizes; 1 without a search."""
    direction = OmegaConf.select(OmegaConf.create(hydra.sweeper), "direction")
    return 2 if isinstance(direction, ListConfig) and len(direction) == 2 else 1


def _current_job() -> tuple[int, list[str], int]:
    """Return the job's number in its sweep (0 for a single run), its overrides, and how many values it returns."""
    hydra = HydraConfig.get()
    number = 0 if OmegaConf.is_missing(hydra.job, "num") else int(hydra.job.num)
    return number, [str(text) for text in hydra.overrides.task], number_of_goals(hydra)
