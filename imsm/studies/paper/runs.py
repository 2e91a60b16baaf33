"""The runs of an experiment: which are done, which failed, and carrying out what is missing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from imsm.pipeline.sweeps.status import job_command
from imsm.utils.errors import UserError

if TYPE_CHECKING:
    from imsm.config.compose import ConfigComposer
    from imsm.config.schema import RunConfig
    from imsm.studies.paper.spec import PaperTable

State = Literal["done", "missing", "failed"]
_STOPPED = (130, -signal.SIGINT)
"""How a run ends that was stopped by hand; any other signal (memory ran out) is a failure."""
_TOLD = 3
"""So many of the last lines of a failed run's log are its error."""


@dataclass(frozen=True, kw_only=True)
class RunRef:
    """One run: what makes it, where it lies, and what became of it."""

    overrides: tuple[str, ...]
    name: str
    folder: Path
    state: State
    result: dict[str, Any] | None
    failure: str | None
    trained: bool

    @property
    def command(self) -> str:
        """What makes it."""
        return job_command(self.overrides, config_dir=None)


class RunIndex:
    """Looks runs up by their overrides, each once.

    Args:
        preflight: composes and checks them.
        runs_root: where they lie.
    """

    def __init__(self, preflight: ConfigComposer, *, runs_root: Path) -> None:
        self.composer, self.runs_root = preflight, runs_root
        self._found: dict[tuple[str, ...], RunRef] = {}
        self._configs: dict[tuple[str, ...], RunConfig] = {}

    def find(self, overrides: tuple[str, ...]) -> RunRef:
        """The run of these overrides as it is now.

        Raises:
            UserError: they do not make a run.
        """
        if overrides not in self._found:
            self._found[overrides] = self._look(overrides)
        return self._found[overrides]

    def refresh(self) -> None:
        """Look everything up again: runs were carried out."""
        self._found.clear()

    def _look(self, overrides: tuple[str, ...]) -> RunRef:
        from imsm.pipeline.run_status import load_if_finished, read_failure, run_dir_of

        config = self.config(overrides)
        folder = run_dir_of(config, runs_root=self.runs_root)
        result = load_if_finished(config, runs_root=self.runs_root)
        failure = read_failure(folder)
        state: State = "done" if result else "failed" if failure else "missing"
        return RunRef(
            overrides=overrides,
            name=folder.name,
            folder=folder,
            state=state,
            result=result,
            failure=failure["error"] if failure else None,
            trained=config.method.trainable,
        )

    def config(self, overrides: Sequence[str]) -> RunConfig:
        """What overrides compose.

        Raises:
            UserError: a line for every problem.
        """
        from imsm.config.validate import load_config

        wanted = tuple(overrides)
        if wanted not in self._configs:
            self._configs[wanted] = load_config(self.composer.compose(wanted), config_dir=None)
        return self._configs[wanted]


def required_runs(experiment: PaperTable, runs: RunIndex, *, scale: str, seeds: int) -> list[RunRef]:
    """The trained runs that an experiment needs, each once.

    The original needs none: every trained run keeps the original's answers to its own tests.
    """
    found: dict[str, RunRef] = {}
    for seed in range(seeds):
        for row in experiment.rows:
            for column in experiment.spec.columns:
                wanted = experiment.overrides(row, column, scale=scale, seed=seed)
                run = runs.find(wanted)
                if run.trained:
                    found.setdefault(run.name, run)
    return list(found.values())


def run_missing(wanted: Iterable[RunRef], *, log_dir: Path, jobs: int, log: Callable[[str], None]) -> list[str]:
    """Carry out runs that are not done, each in a process of its own; one's failure ends no other.

    Args:
        wanted: the runs.
        logs: a folder for what they say.
        jobs: how many at a time; they share the cores out.
        tell: told a line at each start and end.

    Returns:
        The names of those that failed.

    Raises:
        KeyboardInterrupt: stopped by hand; the runs at work have saved what they had.
    """
    due = [run for run in wanted if run.state != "done"]
    log_dir.mkdir(parents=True, exist_ok=True)
    threads = max(1, (os.cpu_count() or 1) // jobs)
    environment = {**os.environ}
    if jobs > 1:
        environment.setdefault("OMP_NUM_THREADS", str(threads))
    failed: list[str] = []
    stopped = False

    def one(numbered: tuple[int, RunRef]) -> None:
        nonlocal stopped
        number, run = numbered
        if stopped:
            return
        log = log_dir / f"{run.name}.log"
        log(f"{number}/{len(due)} {run.name}")
        started = time.monotonic()
        with log.open("w", encoding="utf-8") as stream:
            command = [sys.executable, "-m", "imsm.run", *run.overrides]
            code = subprocess.run(
                command, stdout=stream, stderr=subprocess.STDOUT, env=environment, check=False
            ).returncode
        seconds = time.monotonic() - started
        if code in _STOPPED:
            stopped = True
        elif code:
            failed.append(run.name)
            _note(run, log, code)
        log(f"{number}/{len(due)} {run.name}: {'ended with ' + str(code) if code else 'done'}, {seconds:.0f} s")

    with ThreadPoolExecutor(max_workers=jobs) as pool:
        list(pool.map(one, enumerate(due, start=1)))
    if stopped:
        raise KeyboardInterrupt
    return failed


def _note(run: RunRef, log: Path, code: int) -> None:
    """Keep why a run failed, for the table and the next command."""
    from imsm.pipeline.run_status import write_failure

    text = log.read_text(encoding="utf-8").rpartition("imsm: ")[2]
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    error = "; ".join(lines[-_TOLD:]) or "nothing was said"
    if code < 0:
        name = signal.Signals(-code).name
        error = f"ended by {name}" + (" (did memory run out?)" if name == "SIGKILL" else "")
        code = 128 - code  # as a shell says it
    run.folder.mkdir(parents=True, exist_ok=True)
    write_failure(run.folder, error=error, exit_code=code, command=run.command)


def validate_runs(experiment: PaperTable, runs: RunIndex, *, scale: str) -> None:
    """Look for what is wrong with an experiment's runs before the first is begun.

    A run that is done was looked at before it began.

    Raises:
        UserError: a line per problem.
    """
    wanted = {
        experiment.overrides(row, column, scale=scale, seed=0)
        for row in experiment.rows
        for column in experiment.spec.columns
    }
    due = [each for each in wanted if not _is_done(each, runs)]
    errors = [line for each in due for line in runs.composer.validate(each, sweep=False)]
    if errors:
        raise UserError(f"{experiment.name}: " + "; ".join(sorted(set(errors))))


def _is_done(overrides: tuple[str, ...], runs: RunIndex) -> bool:
    try:
        return runs.find(overrides).state == "done"
    except UserError:  # the preflight says all that is wrong
        return False
