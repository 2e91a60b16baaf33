"""What Hydra calls for each run: carry it out, and keep what became of it.

A run that fails ends nothing but itself: its error is told, noted in its folder for
`imsm compare`, and noted in the sweep's folder for the command that started the sweep.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from imsm.pipeline.sweeps.status import JobOutcome, SweepDir, member_command
from imsm.utils.errors import RunError, UserError
from imsm.utils.paths import runs_root

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from imsm.config.schema import RunConfig


@dataclass(frozen=True, kw_only=True)
class SweepJob:
    """Carries out what Hydra composed; submitit takes it to another process.

    Args:
        config_dir: the folder of options of one's own.
        sweep: where to keep what became of it.
        several: whether there are others beside it.
    """

    config_dir: Path | None
    sweep: SweepDir
    several: bool

    def __call__(self, cfg: DictConfig) -> float | None:
        """Carry one run out; returns what a search maximises, None if there is no such value."""
        number, overrides = _place()
        try:
            ended = self._carry_out(cfg, number, overrides)
        except (Exception, SystemExit) as error:
            if isinstance(error, SystemExit) and "SUBMITIT_FOLDER" in os.environ:
                raise  # submitit puts the job back into the queue
            ended = self._failed(error, cfg, number, overrides)
        self.sweep.write_status(ended)
        if ended.state == "failed":
            _free_memory()
        return ended.objective

    def _carry_out(self, cfg: DictConfig, number: int, overrides: list[str]) -> JobOutcome:
        from imsm.config.validate import load_config
        from imsm.pipeline.dispatch import dispatch
        from imsm.pipeline.run_status import clear_failure, load_if_finished, run_dir_of, sweep_objective

        config = load_config(cfg, config_dir=self.config_dir)
        before = load_if_finished(config, runs_root=runs_root())
        folder = run_dir_of(config, runs_root=runs_root())
        if config.mode != "plan":
            clear_failure(folder)
        dispatch(config, sweep=self.several)
        if config.mode != "plan":
            clear_failure(folder)
        found = load_if_finished(config, runs_root=runs_root())
        return JobOutcome(
            number=number,
            overrides=overrides,
            state="done" if before is None else "skipped",
            objective=None if found is None else sweep_objective(found, config.data.name),
        )

    def _failed(self, error: BaseException, cfg: DictConfig, number: int, overrides: list[str]) -> JobOutcome:
        if isinstance(error, UserError | RunError):
            line = str(error)
            print(f"imsm: {line}", file=sys.stderr)
        else:
            traceback.print_exception(error)
            line = " ".join(f"{type(error).__name__}: {error}".split())
        code = 2 if isinstance(error, UserError) else 1
        self._note_in_the_folder(cfg, overrides, line, code)
        return JobOutcome(number=number, overrides=overrides, state="failed", exit_code=code, error=line)

    def _note_in_the_folder(self, cfg: DictConfig, overrides: list[str], line: str, code: int) -> None:
        from imsm.config.validate import load_config

        try:
            config = load_config(cfg, config_dir=self.config_dir)
        except UserError:
            return
        note_failure(config, overrides, error=line, exit_code=code, config_dir=self.config_dir)


def note_failure(
    config: RunConfig, overrides: list[str], *, error: str, exit_code: int, config_dir: Path | None
) -> None:
    """Leave `failure.json` in a run's folder, if the folder is that run's."""
    from imsm.pipeline.run_status import run_dir_of, write_failure

    folder = run_dir_of(config, runs_root=runs_root())
    own = config.run_dir is None or _is_of(config, folder)
    if config.mode != "plan" and own:
        command = f"python -m imsm.run {member_command(overrides, config_dir=config_dir)}".rstrip()
        write_failure(folder, error=error, exit_code=exit_code, command=command)


def _is_of(config: RunConfig, folder: Path) -> bool:
    """Whether a folder that was asked for holds this very run, not another one or other files."""
    from imsm.config.identity import run_identity
    from imsm.utils.run_dir import RunDir

    try:
        found = json.loads(RunDir(folder).identity.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return bool(found == json.loads(json.dumps(run_identity(config))))


def _place() -> tuple[int, list[str]]:
    """A member's number in its sweep (0 for a single run), and its overrides."""
    from hydra.core.hydra_config import HydraConfig
    from omegaconf import OmegaConf

    hydra = HydraConfig.get()
    number = 0 if OmegaConf.is_missing(hydra.job, "num") else int(hydra.job.num)
    return number, [str(text) for text in hydra.overrides.task]


def _free_memory() -> None:
    """Let go of what a failed run held, so that the next one has the memory."""
    gc.collect()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        torch.cuda.empty_cache()
