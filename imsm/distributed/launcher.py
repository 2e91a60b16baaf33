"""Start the worker processes of a run on this machine and wait for them.

    imsm.run (launcher) -> imsm.cli.worker, one process per GPU

The launcher holds the rendezvous store, so no other program can take its port. It forwards
signals to all workers; when one worker ends with an error, it stops the others.
"""

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

from imsm.distributed.rendezvous import LOOPBACK, listening_store
from imsm.distributed.supervisor import SignalForwarder, WorkerProcess, first_failed, supervise
from imsm.distributed.worker import ERROR_FILE, LAUNCHER_PID
from imsm.utils import stop_signals
from imsm.utils.errors import RunError, UserError

WORKER = "imsm.cli.worker"
_RESUME_HINT = "the last checkpoint is kept; rerun the same command to resume"


def launch(
    settings: Mapping[str, Any],
    *,
    run_dir: Path,
    nproc_per_node: int,
    module: str = WORKER,
    worker_arguments: Sequence[str] = (),
) -> None:
    """Run ``module`` in several worker processes on this machine.

    Rank 0 prints to this terminal, the others to files under ``run_dir``/processes, which are
    deleted after success. ``settings`` are passed to the workers in a file: `config`, `runs_root`, `device`;
    ``worker_arguments`` follow the file on their command line.

    Raises:
        UserError: Raised by the first worker that failed, or ``run_dir`` is not writable.
        RunError: Raised by the first worker that failed, or that worker crashed.
        KeyboardInterrupt: The workers were stopped by a signal.
    """
    with ExitStack() as stack:
        stack.enter_context(stop_signals.keeping(f"finished steps are kept in {run_dir}"))
        signals = stack.enter_context(SignalForwarder())
        folder = stack.enter_context(worker_dir(run_dir))
        settings_path = write_settings(settings, folder)
        # port 0: the system chooses a free one, which this process then holds
        store = listening_store(LOOPBACK)
        common = _worker_environment(nproc_per_node) | {"MASTER_PORT": str(store.port)}
        workers: list[WorkerProcess] = []
        # before the first start: leave no worker running, whatever goes wrong here
        stack.callback(lambda: list(map(WorkerProcess.kill, workers)))
        for rank in range(nproc_per_node):
            command = [sys.executable, "-m", module, str(settings_path), *worker_arguments]
            workers.append(_start(rank, command=command, folder=folder, common=common))
        killed = supervise(workers, signals)
        _raise_failure(workers, killed=killed)
        shutil.rmtree(folder.parent, ignore_errors=True)


@contextmanager
def worker_dir(run_dir: Path) -> Iterator[Path]:
    """Create a folder for logs and error files; empty folders are removed on exit.

    Raises:
        UserError: The folder cannot be written.
    """
    parent = run_dir / "processes"
    created = [path for path in (parent, run_dir) if not path.exists()]
    try:
        parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix="", dir=parent))
    except OSError as error:
        raise UserError(f"run_dir={run_dir}: cannot be written ({error.strerror or error})") from None
    try:
        yield folder
    # neither is a crash, so the logs hold nothing of interest
    except (UserError, KeyboardInterrupt):
        shutil.rmtree(folder, ignore_errors=True)
        raise
    finally:
        (folder / "run.json").unlink(missing_ok=True)
        # a folder with logs is not empty and stays
        for path in (folder, *created):
            with suppress(OSError):
                path.rmdir()


def write_settings(settings: Mapping[str, Any], folder: Path) -> Path:
    """Write the workers' settings to a file and return its path."""
    path = folder / "run.json"
    path.write_text(json.dumps(dict(settings)), encoding="utf-8")
    return path


def _worker_environment(num_workers: int) -> dict[str, str]:
    # torch would start a thread per core in every worker
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    threads = max(1, (cores or 1) // num_workers)
    return {
        "MASTER_ADDR": LOOPBACK,
        "WORLD_SIZE": str(num_workers),
        "LOCAL_WORLD_SIZE": str(num_workers),
        # torch's rendezvous then connects to our store instead of creating one
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(threads)),
        LAUNCHER_PID: str(os.getpid()),
    }


def _start(rank: int, *, command: Sequence[str], folder: Path, common: Mapping[str, str]) -> WorkerProcess:
    error_file = folder / f"{rank}.json"
    log = folder / f"{rank}.log" if rank > 0 else None
    own = {"RANK": str(rank), "LOCAL_RANK": str(rank), ERROR_FILE: str(error_file)}
    with ExitStack() as stack:
        stream = stack.enter_context(log.open("wb")) if log else None
        process = subprocess.Popen(
            command,
            env={**os.environ, **common, **own},
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=stream,
            # the terminal's Ctrl-C reaches only the launcher, which forwards it
            start_new_session=True,
        )
    return WorkerProcess(rank=rank, process=process, log=log, error_file=error_file)


def _raise_failure(workers: Sequence[WorkerProcess], *, killed: bool) -> None:
    """Raise the error of the worker that failed first; the others failed because of it."""
    failed = first_failed(workers)
    if killed:
        raise KeyboardInterrupt
    if failed is None:
        return
    if failed.stopped:
        raise KeyboardInterrupt
    # a worker that was killed, or that crashed outside Python, records no error
    failure, name = failed.failure, f"process {failed.rank} of {len(workers)}"
    if failure is None:
        assert failed.code is not None
        end = f"ended with exit code {failed.code}"
        if failed.code < 0:
            end = f"was killed by {signal.Signals(-failed.code).name}; {_RESUME_HINT}"
        raise RunError(f"{name} {end}{_log_hint(failed)}")
    if failure.kind == "UserError":
        raise UserError(failure.text)
    if failure.kind == "RunError":
        raise RunError(failure.text)
    if failed.rank == 0:
        print(failure.trace, file=sys.stderr)
    raise RunError(f"{name} failed: {failure.kind}: {failure.text}{_log_hint(failed)}")


def _log_hint(worker: WorkerProcess) -> str:
    has_output = worker.log is not None and worker.log.is_file() and worker.log.stat().st_size > 0
    return f" (log: {worker.log})" if has_output else ""
