"""The runs of a table: their state, and running the missing ones."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from imsm.config.compose import ConfigComposer
from imsm.config.schema import RunConfig
from imsm.config.validate import load_config
from imsm.distributed.supervisor import SignalForwarder
from imsm.evaluation.result import result_error
from imsm.pipeline.plan.placement import GpuPool
from imsm.pipeline.run_status import load_if_finished, read_failure, run_dir_of, write_failure
from imsm.pipeline.sweeps.status import job_command
from imsm.studies.paper.spec import PaperTable
from imsm.utils import stop_signals
from imsm.utils.errors import UserError

State = Literal["done", "missing", "failed"]
_INTERRUPTED = (*stop_signals.EXIT_CODES, *(-number for number in stop_signals.STOP_SIGNALS))
"""Exit codes of a run stopped by the user; any other signal (such as out-of-memory) is a failure."""
_POLL_SECONDS = 0.2
_ERROR_LINES = 3
"""Number of last log lines reported as the error of a failed run."""


@dataclass(frozen=True, kw_only=True)
class RunRef:
    """A run and its state."""

    overrides: tuple[str, ...]
    name: str
    folder: Path
    state: State
    result: dict[str, Any] | None
    failure: str | None
    trained: bool

    @property
    def command(self) -> str:
        """Command line of the run."""
        return job_command(self.overrides, config_dir=None)


class RunIndex:
    """Finds runs by their overrides, with a cache."""

    def __init__(self, composer: ConfigComposer, *, runs_root: Path) -> None:
        self.composer, self.runs_root = composer, runs_root
        self._runs: dict[tuple[str, ...], RunRef] = {}
        self._configs: dict[tuple[str, ...], RunConfig] = {}

    def find(self, overrides: tuple[str, ...]) -> RunRef:
        """Return the run of the overrides with its current state.

        Raises:
            UserError: The overrides are invalid.
        """
        if overrides not in self._runs:
            config = self.config(overrides)
            folder = run_dir_of(config, runs_root=self.runs_root)
            result = load_if_finished(config, runs_root=self.runs_root)
            failure = read_failure(folder)
            # a changed result is shown like a failed run; running it again writes the result again
            error = failure["error"] if failure else None if result else result_error(folder)
            self._runs[overrides] = RunRef(
                overrides=overrides,
                name=folder.name,
                folder=folder,
                state="done" if result else "failed" if error else "missing",
                result=result,
                failure=error,
                trained=config.method.trainable,
            )
        return self._runs[overrides]

    def refresh(self) -> None:
        """Discard the cached states after runs have finished."""
        self._runs.clear()

    def config(self, overrides: Sequence[str]) -> RunConfig:
        """Compose and validate the overrides.

        Raises:
            UserError: One line per error.
        """
        key = tuple(overrides)
        if key not in self._configs:
            self._configs[key] = load_config(self.composer.compose(key), config_dir=None)
        return self._configs[key]


def required_runs(table: PaperTable, runs: RunIndex, *, scale: str, seeds: int) -> list[RunRef]:
    """Return the trained runs of a table, without duplicates.

    The original needs no separate run: every trained run contains its scores.
    """
    found = (
        runs.find(table.overrides(row, column, scale=scale, seed=seed))
        for seed in range(seeds)
        for row in table.rows
        for column in table.spec.columns
    )
    return list({run.name: run for run in found if run.trained}.values())


def validate_runs(table: PaperTable, runs: RunIndex, *, scale: str) -> None:
    """Validate the overrides of all unfinished runs.

    Raises:
        UserError: One line per error.
    """
    wanted = {table.overrides(row, c, scale=scale, seed=0) for row in table.rows for c in table.spec.columns}
    unfinished = [overrides for overrides in wanted if not _is_done(overrides, runs)]
    errors = {line for overrides in unfinished for line in runs.composer.validate(overrides, sweep=False)}
    if errors:
        raise UserError(f"{table.name}: " + "; ".join(sorted(errors)))


def _is_done(overrides: tuple[str, ...], runs: RunIndex) -> bool:
    try:
        return runs.find(overrides).state == "done"
    except UserError:  # reported by the composer, with all other errors
        return False


def run_missing(
    wanted: Iterable[RunRef],
    *,
    log_dir: Path,
    jobs: int,
    log: Callable[[str], None],
    gpus: Sequence[str] = (),
    gpus_of: Callable[[RunRef], int] = lambda run: 1,
) -> list[str]:
    """Run unfinished runs in their order, each in its own process; return the names of the failed ones.

    At most ``jobs`` runs at a time share the cores, and write their output to ``log_dir``; ``log`` is called with
    a line at each start and end. With ``gpus`` (`imsm.distributed.gpus.gpu_names`) each run sees ``gpus_of(run)`` of
    them, which no other run sees meanwhile; without, each run sees all. A failure does not stop the others.

    Raises:
        KeyboardInterrupt: Stopped by the user; active runs have saved their state.
    """
    unfinished = [run for run in wanted if run.state != "done"]
    log_dir.mkdir(parents=True, exist_ok=True)
    pool = GpuPool(gpus)
    queue = [_Process(run, f"{n}/{len(unfinished)} {run.name}", log_dir) for n, run in enumerate(unfinished, start=1)]
    needs = [gpus_of(each.run) for each in queue] if gpus else [0] * len(queue)
    active: list[_Process] = []
    failed: list[str] = []
    interrupted = False
    with SignalForwarder() as signals:
        try:
            while active or (queue and not interrupted):
                while queue and not interrupted and len(active) < jobs and (taken := pool.take(needs[0])) is not None:
                    active.append(queue.pop(0))
                    needs.pop(0)
                    active[-1].start(_environment(jobs, taken if gpus else None), taken, log)
                for process in [each for each in active if each.ended()]:
                    active.remove(process)
                    pool.give_back(process.gpus)
                    code = process.report(log)
                    interrupted = interrupted or code in _INTERRUPTED
                    failed += [process.run.name] if code and code not in _INTERRUPTED else []
                for number in signals.pop_received():
                    interrupted = interrupted or number in stop_signals.STOP_SIGNALS
                    for process in active:
                        process.send(signal.SIGTERM if number in stop_signals.STOP_SIGNALS else number)
                time.sleep(_POLL_SECONDS)
        finally:
            # an error here must not leave runs behind
            for process in active:
                process.send(signal.SIGTERM)
    if interrupted:
        raise KeyboardInterrupt
    return failed


def _environment(jobs: int, gpus: Sequence[str] | None) -> dict[str, str]:
    """Return the environment of one of several runs at a time, which sees ``gpus`` only (None: all)."""
    environment = {**os.environ}
    # By default each process starts one OpenMP thread per core.
    if jobs > 1:
        environment.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // jobs)))
    return environment if gpus is None else environment | {"CUDA_VISIBLE_DEVICES": ",".join(gpus)}


class _Process:
    """The process of one run."""

    def __init__(self, run: RunRef, prefix: str, log_dir: Path) -> None:
        self.run, self.gpus = run, list[str]()
        self._prefix, self._log_file = prefix, log_dir / f"{run.name}.log"
        self._process: subprocess.Popen[bytes] | None = None
        self._started = 0.0

    def start(self, environment: dict[str, str], gpus: list[str], log: Callable[[str], None]) -> None:
        """Start the run, which uses ``gpus`` until it ends."""
        self.gpus = gpus
        log(self._prefix + (f" on GPU {','.join(gpus)}" if gpus else ""))
        self._started = time.monotonic()
        # A process per run, so that its memory is freed and a crash does not end the others.
        with self._log_file.open("w", encoding="utf-8") as stream:
            command = [sys.executable, "-m", "imsm.run", *self.run.overrides]
            # In its own session, so that a signal of the terminal reaches it only once, forwarded from here.
            self._process = subprocess.Popen(
                command, stdout=stream, stderr=subprocess.STDOUT, env=environment, start_new_session=True
            )

    def ended(self) -> bool:
        """Return whether the process has ended."""
        return self._process is not None and self._process.poll() is not None

    def send(self, number: int) -> None:
        """Send a signal, unless the process has ended."""
        if self._process is not None and not self.ended():
            self._process.send_signal(number)

    def report(self, log: Callable[[str], None]) -> int:
        """Record and print how the run ended; return its exit code."""
        assert self._process is not None
        code = self._process.returncode
        if code and code not in _INTERRUPTED:
            _record_failure(self.run, self._log_file, code)
        outcome = f"exit code {code}" if code else "done"
        log(f"{self._prefix}: {outcome}, {time.monotonic() - self._started:.0f} s")
        return code


def _record_failure(run: RunRef, log_file: Path, code: int) -> None:
    # The command line reports an error as its last line, which starts with "imsm: ".
    text = log_file.read_text(encoding="utf-8").rpartition("imsm: ")[2]
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    error = "; ".join(lines[-_ERROR_LINES:]) or "no output"
    # subprocess returns -N for a process that was ended by signal N, a shell 128 + N.
    if code < 0:
        name = signal.Signals(-code).name
        error = f"ended by {name}" + (" (out of memory?)" if name == "SIGKILL" else "")
        code = 128 - code
    run.folder.mkdir(parents=True, exist_ok=True)
    write_failure(run.folder, error=error, exit_code=code, command=run.command)
