"""Runs on several nodes: DeepSpeed's launcher with a hostfile, or torchrun and srun commands."""

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from imsm.distributed.launcher import WORKER, worker_dir, write_settings
from imsm.distributed.supervisor import SignalForwarder, WorkerProcess, kill_on_parent_exit, supervise
from imsm.utils import stop_signals
from imsm.utils.errors import RunError, UserError

PORT = 29500
"""Master port in the printed torchrun commands."""
_HOST_LINE = re.compile(r"(\S+)\s+slots=(\d+)")
# prefixes of variables to set on every node; DeepSpeed's launcher forwards only a few
_FORWARDED = ("HF_", "TRANSFORMERS_", "IMSM_", "XDG_")
# the variables are written to a file in the run's folder
_SECRET = ("TOKEN", "KEY")


def read_hostfile(path: str) -> dict[str, int]:
    """Return processes per host from lines of the form "host slots=8".

    Raises:
        UserError: The file cannot be read or a line has another form.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8 text"
        raise UserError(f"engine.hostfile={path}: cannot be read ({reason})") from None
    hosts: dict[str, int] = {}
    for number, line in enumerate(lines, start=1):
        text = line.partition("#")[0].strip()
        if not text:
            continue
        match = _HOST_LINE.fullmatch(text)
        if match is None or int(match[2]) < 1:
            raise UserError(f"engine.hostfile={path}: line {number} is {text!r}; must be like 'node1 slots=8'")
        if match[1] in hosts:
            raise UserError(f"engine.hostfile={path}: line {number} names {match[1]} again")
        hosts[match[1]] = int(match[2])
    if not hosts:
        raise UserError(f"engine.hostfile={path}: names no host; lines are like 'node1 slots=8'")
    return hosts


def slots_per_node(path: str, *, nnodes: int, nproc_per_node: int | None) -> int:
    """Return the processes per node for the first ``nnodes`` hosts of a hostfile.

    Raises:
        UserError: The hostfile has too few hosts, or fewer slots than ``nproc_per_node``.
    """
    hosts = read_hostfile(path)
    if len(hosts) < nnodes:
        raise UserError(
            f"engine.nnodes={nnodes}: engine.hostfile={path} names {len(hosts)}; set "
            f"engine.nnodes={len(hosts)}, or add hosts"
        )
    # every node runs the same number of processes, so the smallest one limits them
    host, slots = min(list(hosts.items())[:nnodes], key=lambda host_slots: host_slots[1])
    if nproc_per_node is not None and nproc_per_node > slots:
        raise UserError(
            f"engine.nproc_per_node={nproc_per_node}: {host} has {slots} slot{'s' if slots > 1 else ''} in "
            f"engine.hostfile={path}; set engine.nproc_per_node={slots}"
        )
    return nproc_per_node or slots


def deepspeed_command(
    settings_path: Path | str,
    *,
    hostfile: str,
    nnodes: int,
    nproc_per_node: int,
    module: str = WORKER,
    worker_arguments: Sequence[str] = (),
) -> list[str]:
    """Return the command that starts the workers of all nodes over ssh."""
    return [
        *("python", "-m", "deepspeed.launcher.runner", "--hostfile", hostfile),
        *("--num_nodes", str(nnodes), "--num_gpus", str(nproc_per_node), "--no_local_rank"),
        *("--log_level", "warning", "--module", module, str(settings_path), *worker_arguments),
    ]


def srun_command(command: Sequence[str], *, nnodes: int, nproc_per_node: int) -> list[str]:
    """Return the one command for all nodes of a SLURM allocation."""
    return [
        *("srun", "--nodes", str(nnodes), "--ntasks-per-node", str(nproc_per_node)),
        *("--gpus-per-node", str(nproc_per_node), "python", *command),
    ]


def launch_commands(
    command: Sequence[str], *, hostfile: str | None, nnodes: int, nproc_per_node: int, settings_path: Path
) -> list[str]:
    """Return lines that explain how to start a run on several nodes.

    ``command`` is what follows `python`: `-m imsm.run` and its arguments. With a hostfile the
    run's configuration would be saved at ``settings_path``.
    """
    if hostfile is not None:
        line = deepspeed_command(settings_path, hostfile=hostfile, nnodes=nnodes, nproc_per_node=nproc_per_node)
        return ["imsm.run starts all nodes over ssh with DeepSpeed's launcher:", shlex.join(line)]
    size, port = f"--nnodes {nnodes} --nproc-per-node {nproc_per_node}", f"--master-addr HOST --master-port {PORT}"
    per_node = [f"torchrun {size} --node-rank {rank} {port} {shlex.join(command)}" for rank in range(nnodes)]
    return [
        "one command per node (HOST: name of the first node):",
        *per_node,
        "or one command in a SLURM allocation:",
        shlex.join(srun_command(command, nnodes=nnodes, nproc_per_node=nproc_per_node)),
        "or set engine.hostfile=FILE with lines like 'node1 slots=8', and imsm.run starts the nodes",
    ]


def launch_nodes(
    settings: Mapping[str, Any],
    *,
    run_dir: Path,
    hostfile: str,
    nnodes: int,
    nproc_per_node: int,
    module: str = WORKER,
    worker_arguments: Sequence[str] = (),
) -> None:
    """Run ``module`` on several nodes; all must see ``run_dir`` at the same path.

    ``settings`` are passed to the workers in a file: `config`, `runs_root`, `device`; ``worker_arguments`` follow the
    file on their command line.

    Raises:
        UserError: pdsh is missing, ``run_dir`` is not writable, or a worker raised it.
        RunError: The run failed; rank 0 has printed the reason.
        KeyboardInterrupt: The run was stopped by a signal.
    """
    if shutil.which("pdsh") is None:
        raise UserError(
            f"engine.hostfile={hostfile}: DeepSpeed's launcher needs pdsh on this machine; install "
            "it, or leave engine.hostfile out to see the torchrun and srun commands"
        )
    kept = stop_signals.keeping(f"finished steps are kept in {run_dir}")
    with kept, SignalForwarder() as signals, worker_dir(run_dir) as folder:
        path = write_settings({**settings, "environment": _forwarded_environment()}, folder)
        command = deepspeed_command(
            path,
            hostfile=hostfile,
            nnodes=nnodes,
            nproc_per_node=nproc_per_node,
            module=module,
            worker_arguments=worker_arguments,
        )
        process = subprocess.Popen(
            [sys.executable, *command[1:]],
            stdin=subprocess.DEVNULL,
            start_new_session=True,
            # if this process is killed: DeepSpeed's runner ends the remote workers on SIGTERM
            preexec_fn=partial(kill_on_parent_exit, parent_pid=os.getpid(), signal_number=signal.SIGTERM),
        )
        # DeepSpeed's runner handles SIGTERM and dies from SIGUSR1
        runner = WorkerProcess(rank=0, process=process, forwards_all=False)
        try:
            killed = supervise([runner], signals)
        finally:
            runner.kill()
    # rank 0 has printed its error; only the exit code arrives here
    code = process.returncode
    if killed or runner.stop_requested or runner.stopped:
        raise KeyboardInterrupt
    if code == 2:
        raise UserError("the run was rejected (see above)")
    if code != 0:
        raise RunError(f"the processes on {nnodes} nodes ended with exit code {code} (see above)")


def _forwarded_environment() -> dict[str, str]:
    return {
        name: value
        for name, value in os.environ.items()
        if name.startswith(_FORWARDED) and not any(word in name for word in _SECRET)
    }
