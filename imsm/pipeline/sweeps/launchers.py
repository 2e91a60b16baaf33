"""Sweeps whose jobs are separate processes: a SLURM job array, or processes on this machine.

Both extend the launchers of hydra-submitit-launcher: finished jobs are skipped, a crashed job does
not stop the others, and local jobs start when CPUs, GPUs and memory are free. Hydra instantiates
the launchers in `hydra_plugins`, which call this module.
"""

import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import submitit
from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn, JobStatus
from hydra_plugins.hydra_submitit_launcher.config import BaseQueueConf
from omegaconf import OmegaConf

from imsm.config.schema import RunConfig
from imsm.config.validate import load_config
from imsm.distributed.gpus import free_gpu_names
from imsm.pipeline.plan.placement import GpuPool, gpus_of_run
from imsm.pipeline.run_status import load_if_finished, sweep_objectives
from imsm.pipeline.sweeps.job import SweepJob, number_of_goals, record_failure
from imsm.pipeline.sweeps.status import JobOutcome
from imsm.utils import stop_signals
from imsm.utils.errors import UserError
from imsm.utils.paths import runs_root
from imsm.utils.trust import trust_folder

Launcher = Any  # hydra-submitit-launcher has no types
Job = submitit.Job[JobReturn]
Jobs = Iterator[tuple[int, Job]]

_POLL_SECONDS = 0.5
_CPUS_PER_JOB = 4


def launch(
    launcher: Launcher,
    job_overrides: Sequence[Sequence[str]],
    first_number: int,
    *,
    run_jobs: Callable[[Launcher, dict[int, list[str]], Mapping[int, RunConfig]], Jobs],
) -> list[JobReturn]:
    """Run the unfinished jobs of a sweep and wait for all of them.

    ``launcher`` is set up by Hydra; ``run_jobs`` starts jobs, by number, and yields each one when it ends.
    """
    # pickled with the launcher: a job on another node may have another environment
    launcher.runs_root = runs_root()
    overrides = dict(enumerate(map(list, job_overrides), first_number))
    configs = {number: _config(launcher, texts) for number, texts in overrides.items()}
    report = _Reporter(launcher.task_function, overrides)
    returns: dict[int, JobReturn] = {}
    for number, config in configs.items():
        result = load_if_finished(config, runs_root=runs_root())
        if result is not None:
            objective = sweep_objectives(result, config.data.name, goals=number_of_goals(launcher.config.hydra))
            report.write(number, state="skipped", objective=objective)
            returns[number] = _job_return(objective)
    waiting = {number: texts for number, texts in overrides.items() if number not in returns}
    for number, job in run_jobs(launcher, waiting, configs):
        returns[number] = _job_return(report.ended(number, configs[number], job))
    return [returns[number] for number in overrides]


def prepare_job_process(launcher: Launcher) -> None:
    """Set the runs' folder, the GPUs and the import path of a job's process, whose environment may differ."""
    stop_signals.install()
    os.environ["IMSM_RUNS"] = str(launcher.runs_root)
    gpus: list[str] | None = getattr(launcher, "gpus", None)
    if gpus is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(gpus)
    if launcher.task_function.config_dir is not None:
        trust_folder(launcher.task_function.config_dir)


class _Reporter:
    """Writes and prints how each job ended."""

    def __init__(self, job: SweepJob, overrides: dict[int, list[str]]) -> None:
        self.job, self.overrides = job, overrides
        self.shared = set.intersection(*map(set, overrides.values())) if len(overrides) > 1 else set()

    def write(self, number: int, **outcome: Any) -> None:
        """Write a job's status file and print it."""
        written = JobOutcome(number=number, overrides=self.overrides[number], **outcome)
        self.job.sweep.write_status(written)
        self._print(written)

    def ended(self, number: int, config: RunConfig, job: Job) -> Any:
        """Report an ended process and return its objective; write the status of a crashed one."""
        value = None
        with suppress(Exception):  # the status file says how it failed
            value = job.result().return_value
        outcome = self.job.sweep.read_statuses().get(number)
        if outcome is not None:
            self._print(outcome)
            return value
        error = f"its process ended without a result; its log is {job.paths.stderr}"
        record_failure(config, self.overrides[number], error=error, exit_code=1, config_dir=self.job.config_dir)
        self.write(number, state="failed", exit_code=1, error=error)
        return None

    def _print(self, outcome: JobOutcome) -> None:
        error = f": {outcome.error}" if outcome.error else ""
        own = [text for text in outcome.overrides if text not in self.shared]
        print(f"{' '.join(own)}: {outcome.state}{error}", flush=True)


def run_slurm_jobs(launcher: Launcher, waiting: dict[int, list[str]], configs: Mapping[int, RunConfig]) -> Jobs:
    """Submit jobs as one job array and yield each one when it ends."""
    if not waiting:
        return
    params = dict(launcher.params)
    executor = submitit.AutoExecutor(
        folder=params.pop("submitit_folder"), cluster="slurm", slurm_max_num_timeout=params.pop("max_num_timeout")
    )
    common = set(OmegaConf.structured(BaseQueueConf).keys())
    # submitit's AutoExecutor rejects SLURM's own parameters without their prefix
    executor.update_parameters(**{key if key in common else f"slurm_{key}": value for key, value in params.items()})
    arguments = [_job_arguments(number, overrides) for number, overrides in waiting.items()]
    running = dict(zip(waiting, executor.map_array(launcher, *zip(*arguments, strict=True)), strict=True))
    print(f"{len(running)} jobs in SLURM's queue, from {next(iter(running.values())).job_id} on")
    with stop_signals.keeping("the jobs stay in SLURM's queue (scancel removes them)"):
        while running:
            for number in [number for number, job in running.items() if job.done()]:
                yield number, running.pop(number)
            time.sleep(_POLL_SECONDS)


def run_local_jobs(launcher: Launcher, waiting: dict[int, list[str]], configs: Mapping[int, RunConfig]) -> Jobs:
    """Run jobs on this machine, as many at once as it has room for, and yield each one when it ends.

    They start in their order, each with its own GPUs.
    """
    pool, needs = _gpus(launcher, {number: configs[number] for number in waiting})
    params, gpus_used = launcher.params, pool.size if any(needs.values()) else 0
    limit = jobs_at_once(cpus_per_task=params["cpus_per_task"], mem_gb=params["mem_gb"], gpus=gpus_used)
    queue = list(waiting)
    running: dict[int, tuple[Job, list[str]]] = {}
    if queue:
        print(f"{len(queue)} jobs to run, {_describe(needs, pool, limit)}", flush=True)

    def cancel() -> None:
        for job, _ in running.values():
            # a job may end between the last poll and this signal
            with suppress(ProcessLookupError):
                job.cancel()

    try:
        with stop_signals.on_stop(cancel):
            while queue or running:
                while queue and len(running) < limit and (gpus := pool.take(needs[queue[0]])) is not None:
                    number = queue.pop(0)
                    with stop_signals.deferred():
                        running[number] = _start_local_job(launcher, number, waiting[number], gpus), gpus
                for number in [number for number, (job, _) in running.items() if job.done()]:
                    job, gpus = running.pop(number)
                    pool.give_back(gpus)
                    yield number, job
                time.sleep(_POLL_SECONDS)
    finally:
        cancel()


def _gpus(launcher: Launcher, configs: Mapping[int, RunConfig]) -> tuple[GpuPool, dict[int, int]]:
    """Return the GPUs of this machine, and how many of them each job uses.

    Raises:
        UserError: one job needs more GPUs than there are.
    """
    per_job: int | None = launcher.params["gpus_per_node"]
    pool = GpuPool([] if per_job == 0 else free_gpu_names())
    if per_job is None:
        return pool, {number: gpus_of_run(config, gpus=pool.size) for number, config in configs.items()}
    if per_job > pool.size:
        raise UserError(
            f"hydra.launcher.gpus_per_node={per_job}: this machine has {pool.size} visible GPUs; "
            f"set at most {pool.size}"
        )
    return pool, dict.fromkeys(configs, per_job)


def _describe(needs: Mapping[int, int], pool: GpuPool, limit: int) -> str:
    """Return how many jobs run at once, and on how many GPUs."""
    fewest = min(needs.values())
    at_once = min(len(needs), limit, pool.size // fewest if fewest else limit)
    counts = " or ".join(str(count) for count in sorted(set(needs.values())) if count)
    return f"{at_once} at once" + (f", on {counts} of {pool.size} GPUs each" if counts else "")


def _start_local_job(launcher: Launcher, number: int, overrides: list[str], gpus: list[str]) -> Job:
    executor = submitit.LocalExecutor(folder=launcher.params["submitit_folder"])
    executor.update_parameters(
        timeout_min=launcher.params["timeout_min"],
        tasks_per_node=1,
        stderr_to_stdout=launcher.params["stderr_to_stdout"],
    )
    # pickled with the launcher: submitit takes numbers of GPUs only, no UUIDs
    launcher.gpus = gpus
    with _discard_stderr():  # of submitit's controller process; the job writes to its log
        return executor.submit(launcher, *_job_arguments(number, overrides))


def jobs_at_once(*, cpus_per_task: int | None, mem_gb: int | None, gpus: int) -> int:
    """Return how many jobs the CPUs and the memory of this machine allow at once; at least one.

    The needs of one job: CPUs (None: `_CPUS_PER_JOB` without GPUs, no limit with them), GiB (None for no limit).
    """
    # not os.cpu_count(): a container or a SLURM allocation may allow fewer CPUs
    cpus = len(os.sched_getaffinity(0))
    slots = max(cpus, gpus) if gpus and cpus_per_task is None else cpus // (cpus_per_task or _CPUS_PER_JOB)
    if mem_gb:
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        slots = min(slots, int(memory / (mem_gb * 2**30)))
    return max(slots, 1)


def _config(launcher: Launcher, overrides: list[str]) -> RunConfig:
    cfg = launcher.hydra_context.config_loader.load_sweep_config(launcher.config, overrides)
    # Hydra returns a struct, from which no key can be deleted
    OmegaConf.set_struct(cfg, False)
    del cfg["hydra"]
    return load_config(cfg, config_dir=launcher.task_function.config_dir)


def _job_arguments(number: int, overrides: list[str]) -> tuple[Any, ...]:
    """Return the arguments of the library's `BaseSubmititLauncher.__call__`."""
    return overrides, "hydra.sweep.dir", number, f"job {number}", Singleton.get_state()


def _job_return(value: float | list[float] | None) -> JobReturn:
    """Return what Hydra's sweepers read; a failed job counts as completed so that the sweep continues."""
    job_return = JobReturn(status=JobStatus.COMPLETED)
    job_return.return_value = value
    return job_return


@contextmanager
def _discard_stderr() -> Iterator[None]:
    """Redirect stderr of processes started meanwhile: after Ctrl-C each would print a traceback."""
    sys.stderr.flush()
    stderr, devnull = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(devnull, 2)
    try:
        yield
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)
        os.close(devnull)
