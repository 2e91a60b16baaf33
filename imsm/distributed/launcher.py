"""Start the processes of a run on this machine, and end with them.

    imsm.run (the launcher) -> imsm.cli.worker, a process per GPU

The launcher holds the store that the workers meet at, so that no port can be taken in between. It
trains nothing. A signal to it goes to all workers; whatever ends one of them ends them all.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from imsm.distributed.supervisor import SignalForwarder, WorkerProcess, first_failed, supervise
from imsm.distributed.worker import ERROR_FILE, LAUNCHER
from imsm.utils.errors import RunError, UserError

WORKER = "imsm.cli.worker"
_HERE = "127.0.0.1"
_AGAIN = "the last checkpoint is kept; give the same command again to go on"


def launch(settings: Mapping[str, Any], *, folder: Path, processes: int, module: str = WORKER) -> None:
    """Carry a run out in several processes.

    The first process speaks on this terminal, the others into files under ``folder``/processes,
    which go when all went well.

    Args:
        settings: what the workers read: `config`, `runs_root`, `device`.
        folder: the run's.
        processes: how many.
        module: what they run.

    Raises:
        UserError: raised by the first process that failed, or the folder cannot be written.
        RunError: the same, or a process failed in a way that nobody expects.
        KeyboardInterrupt: they were stopped by a signal.
    """
    from torch.distributed import TCPStore

    with ExitStack() as stack:
        signals = stack.enter_context(SignalForwarder())
        place = stack.enter_context(worker_dir(folder))
        file = write_settings(settings, place)
        store = TCPStore(_HERE, 0, is_master=True, wait_for_workers=False)
        common = _environment(processes) | {"MASTER_PORT": str(store.port)}
        workers: list[WorkerProcess] = []
        stack.callback(_kill_all, workers)
        for rank in range(processes):
            workers.append(_start(rank, module=module, file=file, place=place, common=common))
        killed = supervise(workers, signals)
        _raise_failure(workers, killed=killed)
        shutil.rmtree(place.parent, ignore_errors=True)


@contextmanager
def worker_dir(folder: Path) -> Iterator[Path]:
    """A new folder for what concerns the processes alone; folders that stay empty go.

    Raises:
        UserError: it cannot be written.
    """
    notes = folder / "processes"
    made = [place for place in (notes, folder) if not place.exists()]
    try:
        notes.mkdir(parents=True, exist_ok=True)
        place = Path(tempfile.mkdtemp(prefix="", dir=notes))
    except OSError as error:
        raise UserError(f"run_dir={folder}: cannot be written ({error.strerror or error})") from None
    try:
        yield place
    except (UserError, KeyboardInterrupt):  # nothing to look into
        shutil.rmtree(place, ignore_errors=True)
        raise
    finally:
        (place / "run.json").unlink(missing_ok=True)
        for each in (place, *made):
            with suppress(OSError):
                each.rmdir()


def write_settings(settings: Mapping[str, Any], place: Path) -> Path:
    """Write what the workers read."""
    file = place / "run.json"
    file.write_text(json.dumps(dict(settings)), encoding="utf-8")
    return file


def _environment(processes: int) -> dict[str, str]:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    threads = max(1, (cores or 1) // processes)
    return {
        "MASTER_ADDR": _HERE,
        "WORLD_SIZE": str(processes),
        "LOCAL_WORLD_SIZE": str(processes),
        "TORCHELASTIC_USE_AGENT_STORE": "True",  # torch's rendezvous: the store is there already
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(threads)),
        LAUNCHER: str(os.getpid()),
    }


def _start(rank: int, *, module: str, file: Path, place: Path, common: Mapping[str, str]) -> WorkerProcess:
    error_file = place / f"{rank}.json"
    log = place / f"{rank}.log" if rank > 0 else None
    own = {"RANK": str(rank), "LOCAL_RANK": str(rank), ERROR_FILE: str(error_file)}
    with ExitStack() as stack:
        stream = stack.enter_context(log.open("wb")) if log else None
        process = subprocess.Popen(
            [sys.executable, "-m", module, str(file)],
            env={**os.environ, **common, **own},
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=stream,
            start_new_session=True,  # the terminal's Ctrl-C reaches the launcher alone
        )
    return WorkerProcess(rank=rank, process=process, log=log, error_file=error_file)


def _kill_all(workers: Sequence[WorkerProcess]) -> None:
    """Nothing is left over, whatever went wrong here."""
    for worker in workers:
        worker.kill()


def _raise_failure(workers: Sequence[WorkerProcess], *, killed: bool) -> None:
    """Raise the error of the process that failed first; the others failed because of it."""
    failing = first_failed(workers)
    if killed:
        print(f"killed at once; {_AGAIN}", file=sys.stderr)
        raise KeyboardInterrupt
    if failing is None:
        return
    if failing.stopped:
        raise KeyboardInterrupt
    failure, who = failing.failure, f"process {failing.rank} of {len(workers)}"
    if failure is None:
        assert failing.code is not None
        how = f"ended with exit code {failing.code}"
        if failing.code < 0:
            how = f"was killed by {signal.Signals(-failing.code).name}; {_AGAIN}"
        raise RunError(f"{who} {how}{_log(failing)}")
    if failure.kind == "UserError":
        raise UserError(failure.text)
    if failure.kind == "RunError":
        raise RunError(failure.text)
    if failing.rank == 0:
        print(failure.trace, file=sys.stderr)
    raise RunError(f"{who} failed: {failure.kind}: {failure.text}{_log(failing)}")


def _log(worker: WorkerProcess) -> str:
    said = worker.log is not None and worker.log.is_file() and worker.log.stat().st_size > 0
    return f" (what it said: {worker.log})" if said else ""
