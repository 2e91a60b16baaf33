"""Several machines: DeepSpeed's launcher by a hostfile, or the lines for torchrun and srun."""

from __future__ import annotations

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
from imsm.distributed.supervisor import STOPPED, SignalForwarder, WorkerProcess, kill_on_parent_exit, supervise
from imsm.utils.errors import RunError, UserError

PORT = 29500
"""Where torchrun's nodes meet, in the lines that are shown."""
_HOST = re.compile(r"(\S+)\s+slots=(\d+)")
_CARRIED = ("HF_", "TRANSFORMERS_", "IMSM_", "XDG_")
"""Variables that mean the same on every node; DeepSpeed's launcher passes on few."""
_SECRET = ("TOKEN", "KEY")


def read_hostfile(path: str) -> dict[str, int]:
    """The hosts and how many processes each takes: lines of "host slots=8".

    Raises:
        UserError: there is no such file, or a line of it is something else.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or "it is no text"
        raise UserError(f"engine.hostfile={path}: cannot be read ({why})") from None
    hosts: dict[str, int] = {}
    for number, line in enumerate(lines, start=1):
        text = line.partition("#")[0].strip()
        if not text:
            continue
        found = _HOST.fullmatch(text)
        if found is None or int(found[2]) < 1:
            raise UserError(f"engine.hostfile={path}: line {number} is {text!r}; must be like 'node1 slots=8'")
        if found[1] in hosts:
            raise UserError(f"engine.hostfile={path}: line {number} names {found[1]} again")
        hosts[found[1]] = int(found[2])
    if not hosts:
        raise UserError(f"engine.hostfile={path}: names no host; lines are like 'node1 slots=8'")
    return hosts


def processes_by_hostfile(path: str, *, nodes: int, processes: int | None) -> int:
    """How many processes each node gets.

    Args:
        path: of the hostfile.
        nodes: the first ones in it are taken.
        processes: asked for on each; None: the slots.

    Raises:
        UserError: the hostfile does not say enough for that.
    """
    hosts = read_hostfile(path)
    if len(hosts) < nodes:
        raise UserError(
            f"engine.nnodes={nodes}: engine.hostfile={path} names {len(hosts)}; set "
            f"engine.nnodes={len(hosts)}, or add hosts"
        )
    host, slots = min(list(hosts.items())[:nodes], key=lambda each: each[1])
    if processes is not None and processes > slots:
        raise UserError(
            f"engine.nproc_per_node={processes}: {host} has {slots} slot{'s' if slots > 1 else ''} in "
            f"engine.hostfile={path}; set engine.nproc_per_node={slots}"
        )
    return processes or slots


def deepspeed_command(
    file: Path | str, *, hostfile: str, nodes: int, processes: int, module: str = WORKER
) -> list[str]:
    """The command that starts the workers of all nodes over ssh."""
    return [
        *("python", "-m", "deepspeed.launcher.runner", "--hostfile", hostfile),
        *("--num_nodes", str(nodes), "--num_gpus", str(processes), "--no_local_rank"),
        *("--log_level", "warning", "--module", module, str(file)),
    ]


def torchrun_command(command: Sequence[str], *, nodes: int, processes: int, node: int) -> list[str]:
    """The command to give on one node; HOST stands for the name of node 0.

    Args:
        command: what follows `python`.
        nodes: how many there are.
        processes: on each.
        node: the number of this one.
    """
    return [
        *("torchrun", "--nnodes", str(nodes), "--nproc-per-node", str(processes)),
        *("--node-rank", str(node), "--master-addr", "HOST", "--master-port", str(PORT)),
        *command,
    ]


def srun_command(command: Sequence[str], *, nodes: int, processes: int) -> list[str]:
    """The one command for all nodes of a SLURM allocation."""
    return [
        *("srun", "--nodes", str(nodes), "--ntasks-per-node", str(processes)),
        *("--gpus-per-node", str(processes), "python", *command),
    ]


def launch_commands(
    command: Sequence[str], *, hostfile: str | None, nodes: int, processes: int, place: Path
) -> list[str]:
    """How a run on several nodes is started, a line each, for the user.

    Args:
        command: what follows `python`: `-m imsm.run` and its arguments.
        hostfile: if there is one.
        nodes: how many there are.
        processes: on each.
        place: where the run's configuration would be saved.
    """
    if hostfile is not None:
        line = deepspeed_command(place, hostfile=hostfile, nodes=nodes, processes=processes)
        return ["imsm.run starts all nodes over ssh, with DeepSpeed's launcher:", shlex.join(line)]
    lines = [
        shlex.join(torchrun_command(command, nodes=nodes, processes=processes, node=node)) for node in range(nodes)
    ]
    return [
        "a line for each node (HOST: the name of the first one):",
        *lines,
        "or, in a SLURM allocation, one line:",
        shlex.join(srun_command(command, nodes=nodes, processes=processes)),
        "or give engine.hostfile=FILE with lines like 'node1 slots=8', and imsm.run starts them",
    ]


def launch_nodes(
    settings: Mapping[str, Any], *, folder: Path, hostfile: str, nodes: int, processes: int, module: str = WORKER
) -> None:
    """Carry a run out on several machines; all must see ``folder`` at the same path.

    Args:
        settings: what the workers read: `config`, `runs_root`, `device`.
        folder: the run's.
        hostfile: the machines.
        nodes: how many of them.
        processes: on each.
        module: what they run.

    Raises:
        UserError: pdsh is missing, the folder cannot be written, or the run says so.
        RunError: the run went wrong; the first process has told why.
        KeyboardInterrupt: it was stopped by a signal.
    """
    if shutil.which("pdsh") is None:
        raise UserError(
            f"engine.hostfile={hostfile}: DeepSpeed's launcher needs pdsh on this machine; install "
            "it, or leave engine.hostfile out to see the lines for torchrun and srun"
        )
    carried = {
        name: value
        for name, value in os.environ.items()
        if name.startswith(_CARRIED) and not any(word in name for word in _SECRET)
    }
    with SignalForwarder() as signals, worker_dir(folder) as place:
        file = write_settings({**settings, "environment": carried}, place)
        line = deepspeed_command(file, hostfile=hostfile, nodes=nodes, processes=processes, module=module)
        process = subprocess.Popen(
            [sys.executable, *line[1:]],
            stdin=subprocess.DEVNULL,
            start_new_session=True,
            preexec_fn=partial(kill_on_parent_exit, parent=os.getpid(), number=signal.SIGTERM),
        )
        runner = WorkerProcess(rank=0, process=process, stop_signal=signal.SIGTERM)
        try:
            killed = supervise([runner], signals)
        finally:
            runner.kill()
    code = process.returncode
    if killed or runner.stop_requested or code == STOPPED:
        raise KeyboardInterrupt
    if code == 2:
        raise UserError("the run was refused (see above)")
    if code != 0:
        raise RunError(f"the processes on {nodes} nodes ended with exit code {code} (see above)")
