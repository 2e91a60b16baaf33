"""Sweeps whose members are processes of their own: jobs on SLURM, or several at once here.

These are the launchers of hydra-submitit-launcher but for this: a member that is finished is not
started; a job that dies ends no other one; local jobs are started as the machine has room for them;
a job finds the runs and the modules of one's own, whatever environment it is given.
"""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import submitit
from hydra.core.plugins import Plugins
from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn, JobStatus
from hydra_plugins.hydra_submitit_launcher.config import BaseQueueConf
from hydra_plugins.hydra_submitit_launcher.submitit_launcher import LocalLauncher, SlurmLauncher
from omegaconf import OmegaConf

from imsm.config.schema import RunConfig
from imsm.pipeline.sweeps.job import SweepJob, note_failure
from imsm.pipeline.sweeps.status import JobOutcome
from imsm.utils.errors import UserError
from imsm.utils.paths import runs_root

_POLL_SECONDS = 0.5
_NEEDS = ("cpus_per_task", "gpus_per_node", "mem_gb")


def register_launchers(launcher: str) -> None:
    """Let Hydra take these launchers where it is asked for the library's.

    Hydra finds plugins in one package only, so ours stand under the names of the library's.

    Raises:
        UserError: there is no SLURM on this machine.
    """
    if launcher == "submitit_slurm" and shutil.which("sbatch") is None:
        raise UserError(
            "submitit_slurm: there is no sbatch on this machine; start the sweep on a node of the "
            "cluster that has it, or with sweep=local"
        )
    known = Plugins.instance().class_name_to_class
    for theirs, ours in ((LocalLauncher, LocalJobLauncher), (SlurmLauncher, SlurmJobLauncher)):
        known[f"{theirs.__module__}.{theirs.__name__}"] = ours


class BaseJobLauncher:
    """What both launchers do before a job, in it, and when it has ended."""

    task_function: SweepJob
    params: dict[str, Any]
    runs_root: Path
    shared: set[str]

    def __call__(self, *arguments: Any) -> JobReturn:
        """In the job's process: one member."""
        os.environ["IMSM_RUNS"] = str(self.runs_root)
        if self.task_function.config_dir is not None:
            sys.path.insert(0, str(self.task_function.config_dir))
        return super().__call__(*arguments)  # type: ignore[misc]

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Start what is not finished, and wait for all of it."""
        self.runs_root = runs_root()
        given = dict(enumerate(map(list, job_overrides), initial_job_idx))
        self.shared = set.intersection(*map(set, given.values())) if len(given) > 1 else set()
        configs = {number: self._config(overrides) for number, overrides in given.items()}
        returns = {}
        for number, config in configs.items():
            found = _finished(config)
            if found is not None:
                self._note(JobOutcome(number=number, overrides=given[number], **found))
                returns[number] = _returned(found["objective"])
        waiting = {number: given[number] for number in given if number not in returns}
        for number, job in self._jobs(waiting):
            returns[number] = self._end(number, given[number], configs[number], job)
        return [returns[number] for number in given]

    def _end(self, number: int, overrides: list[str], config: RunConfig, job: submitit.Job[JobReturn]) -> JobReturn:
        """What a job left; one that died is noted here, since it could not do so itself."""
        try:
            value = job.result().return_value
        except Exception:
            value = None
        ended = self.task_function.sweep.read_statuses()
        if number in ended:
            self._tell(ended[number])
            return _returned(value)
        error = f"its process ended without a result; what it said is in {job.paths.stderr}"
        note_failure(config, overrides, error=error, exit_code=1, config_dir=self.task_function.config_dir)
        self._note(JobOutcome(number=number, overrides=overrides, state="failed", exit_code=1, error=error))
        return _returned(None)

    def _note(self, ended: JobOutcome) -> None:
        self.task_function.sweep.write_status(ended)
        self._tell(ended)

    def _tell(self, ended: JobOutcome) -> None:
        said = f": {ended.error}" if ended.error else ""
        own = [text for text in ended.overrides if text not in self.shared]
        print(f"{' '.join(own)}: {ended.state}{said}", flush=True)

    def _config(self, overrides: Sequence[str]) -> RunConfig:
        from imsm.config.validate import load_config

        loader = self.hydra_context.config_loader  # type: ignore[attr-defined]
        cfg = loader.load_sweep_config(self.config, list(overrides))  # type: ignore[attr-defined]
        OmegaConf.set_struct(cfg, False)
        del cfg["hydra"]
        return load_config(cfg, config_dir=self.task_function.config_dir)

    def _folder(self) -> Path:
        return Path(self.params["submitit_folder"])

    def _arguments(self, number: int, overrides: list[str]) -> tuple[Any, ...]:
        """What the library's `__call__` takes."""
        return overrides, "hydra.sweep.dir", number, f"member {number}", Singleton.get_state()

    def _jobs(self, waiting: dict[int, list[str]]) -> Iterator[tuple[int, submitit.Job[JobReturn]]]:
        """Start all of them; yields each when it has ended."""
        raise NotImplementedError


class SlurmJobLauncher(BaseJobLauncher, SlurmLauncher):
    """Members as one job array."""

    def _jobs(self, waiting: dict[int, list[str]]) -> Iterator[tuple[int, submitit.Job[JobReturn]]]:
        if not waiting:
            return
        shared = set(OmegaConf.structured(BaseQueueConf).keys())
        executor = submitit.AutoExecutor(
            folder=self._folder(), cluster="slurm", slurm_max_num_timeout=self.params["max_num_timeout"]
        )
        left_out = ("submitit_folder", "max_num_timeout")
        asked = {key: value for key, value in self.params.items() if key not in left_out}
        executor.update_parameters(**{key if key in shared else f"slurm_{key}": value for key, value in asked.items()})
        arguments = [self._arguments(number, waiting[number]) for number in waiting]
        jobs = dict(zip(waiting, executor.map_array(self, *zip(*arguments, strict=True)), strict=True))
        print(f"{len(jobs)} jobs in SLURM's queue, from {next(iter(jobs.values())).job_id} on")
        try:
            yield from _as_they_end(jobs)
        except BaseException:
            print("the jobs stay in SLURM's queue; scancel takes them out", file=sys.stderr)
            raise


class LocalJobLauncher(BaseJobLauncher, LocalLauncher):
    """Members as processes on this machine, as many at once as it has room for."""

    def _jobs(self, waiting: dict[int, list[str]]) -> Iterator[tuple[int, submitit.Job[JobReturn]]]:
        free = _places(**{key: self.params[key] for key in _NEEDS})
        left, places = list(waiting), {}
        running: dict[int, submitit.Job[JobReturn]] = {}
        if left:
            print(f"{len(left)} members to do, {min(len(left), len(free))} at once", flush=True)
        try:
            while left or running:
                while left and free:
                    number = left.pop(0)
                    places[number] = free.pop(0)
                    running[number] = self._start(number, waiting[number], places[number])
                for number in [n for n, job in running.items() if job.done()]:
                    yield number, running.pop(number)
                    free.append(places[number])
                time.sleep(_POLL_SECONDS)
        finally:
            for job in running.values():
                with suppress(ProcessLookupError):
                    job.cancel()

    def _start(self, number: int, overrides: list[str], gpus: list[int]) -> submitit.Job[JobReturn]:
        executor = submitit.LocalExecutor(folder=self._folder())
        executor.update_parameters(
            timeout_min=self.params["timeout_min"],
            gpus_per_node=len(gpus),
            visible_gpus=gpus,
            tasks_per_node=1,
            stderr_to_stdout=self.params["stderr_to_stdout"],
        )
        with _nothing_on_stderr():  # of submitit's own process; the member's goes to its log
            return executor.submit(self, *self._arguments(number, overrides))


def _places(cpus_per_task: int | None, gpus_per_node: int | None, mem_gb: int | None) -> list[list[int]]:
    """The GPUs of each member that this machine has room for; at least one member.

    Args:
        cpus_per_task: of one member; None: one.
        gpus_per_node: of one member; None: one, if there is any.
        mem_gb: of one member; None: no limit.

    Raises:
        UserError: there are fewer GPUs than one member needs.
    """
    gpus = _gpus() if gpus_per_node != 0 else []
    each = min(1, len(gpus)) if gpus_per_node is None else gpus_per_node
    if each > len(gpus):
        raise UserError(
            f"hydra.launcher.gpus_per_node={each}: this machine shows {len(gpus)} GPUs; ask for "
            "no more than there are, or 0"
        )
    room = len(os.sched_getaffinity(0)) // (cpus_per_task or 1)
    if each:
        room = min(room, len(gpus) // each)
    if mem_gb:
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        room = min(room, int(memory / (mem_gb * 2**30)))
    return [gpus[n * each : (n + 1) * each] for n in range(max(room, 1))]


def _gpus() -> list[int]:
    """The numbers of the GPUs that this command may use."""
    from torch import cuda

    shown = os.environ.get("CUDA_VISIBLE_DEVICES")
    if shown is None:
        return list(range(cuda.device_count()))
    names = [name.strip() for name in shown.split(",") if name.strip()]
    if not all(name.isdecimal() for name in names):
        raise UserError(
            f"CUDA_VISIBLE_DEVICES={shown}: give the numbers of the GPUs, so that each member of "
            "the sweep can be given its own"
        )
    return [int(name) for name in names]


@contextmanager
def _nothing_on_stderr() -> Iterator[None]:
    """For processes started meanwhile: a Ctrl-C would show a traceback of each."""
    sys.stderr.flush()
    kept, nothing = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nothing)


def _finished(config: RunConfig) -> dict[str, Any] | None:
    from imsm.pipeline.run_status import load_if_finished, sweep_objective

    found = load_if_finished(config, runs_root=runs_root())
    if found is None:
        return None
    return {"state": "skipped", "objective": sweep_objective(found, config.data.name)}


def _returned(value: float | None) -> JobReturn:
    """What Hydra's sweepers read; a failed member has a value too, so that the sweep goes on."""
    ended = JobReturn(status=JobStatus.COMPLETED)
    ended.return_value = value
    return ended


def _as_they_end(jobs: dict[int, submitit.Job[JobReturn]]) -> Iterator[tuple[int, submitit.Job[JobReturn]]]:
    running = dict(jobs)
    while running:
        for number in [n for n, job in running.items() if job.done()]:
            yield number, running.pop(number)
        time.sleep(_POLL_SECONDS)
