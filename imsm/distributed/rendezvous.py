"""Join the process group that torchrun, srun or the launcher has started.

Processes meet at a store and exchange strings through it; torch's process group is initialized
only for training (`imsm.distributed.process_group`), so that slow work before it cannot run into
the timeout of a collective. The store has no authentication: it listens on the loopback interface if
all processes are on one machine, else on the given address only.
"""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from typing import TYPE_CHECKING

from imsm.distributed.context import DistributedContext
from imsm.distributed.supervisor import STOPPED
from imsm.utils.errors import RunError, UserError

if TYPE_CHECKING:  # torch takes seconds to import
    from torch.distributed import TCPStore

LOOPBACK = "127.0.0.1"
_TORCHRUN = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
_SLURM_STEP = ("SLURM_PROCID", "SLURM_LOCALID", "SLURM_STEP_NUM_TASKS")  # a batch script lacks one
_AGENT_STORE = "TORCHELASTIC_USE_AGENT_STORE"
"""Set by torchrun, and by the launcher, if they hold the store."""
_FIRST_PORT, _NUM_PORTS = 12000, 20000
"""Ports of SLURM steps, chosen by job id: below the range that Linux assigns by itself."""
_RENDEZVOUS_TIMEOUT = timedelta(minutes=30)
_POLL_SECONDS = 0.02
_runs_ended = 0
_real_stderr = 2


@dataclass(frozen=True, kw_only=True)
class RendezvousInfo:
    """Rank of this process, globally and on its node, and address of the rendezvous store.

    ``one_machine`` is whether all processes are on this machine; False if it is unknown.
    """

    rank: int
    world_size: int
    local_rank: int
    address: str
    port: int
    one_machine: bool = False


def detect_process_group(environment: Mapping[str, str] = os.environ) -> RendezvousInfo | None:
    """Return the group that this process was started in, or None.

    Raises:
        UserError: The environment describes a group, but not where it meets.
    """
    if all(environment.get(name) for name in _TORCHRUN):
        # the launchers of torch and DeepSpeed name the number of processes on this node differently
        local_size = environment.get("LOCAL_WORLD_SIZE") or environment.get("LOCAL_SIZE")
        one_machine = local_size == environment["WORLD_SIZE"]
        replaced = one_machine and not environment.get(_AGENT_STORE)
        return RendezvousInfo(
            rank=_parse_int(environment, "RANK"),
            world_size=_parse_int(environment, "WORLD_SIZE"),
            local_rank=_parse_int(environment, "LOCAL_RANK"),
            address=LOOPBACK if replaced else environment["MASTER_ADDR"],
            port=_parse_int(environment, "MASTER_PORT"),
            one_machine=one_machine,
        )
    if all(name in environment for name in _SLURM_STEP):
        world_size = _parse_int(environment, "SLURM_STEP_NUM_TASKS")
        return _slurm_step(environment, world_size) if world_size > 1 else None
    return None


@cache
def join_process_group(group: RendezvousInfo, *, num_gpus: int = 0) -> DistributedContext:
    """Connect to the store; the jobs of a sweep share one context.

    ``num_gpus`` are the GPUs visible to this process.

    Raises:
        UserError: The store cannot be reached, or no GPU is left for this process.
    """
    from torch.distributed import DistError, PrefixStore  # seconds to import

    # with `srun --gpus-per-task 1` each process sees its own GPU only, as number 0
    local_rank = group.local_rank if num_gpus != 1 else 0
    if 0 < num_gpus <= local_rank:
        raise UserError(
            f"process {group.rank} of {group.world_size}: is number {local_rank + 1} on its node, where "
            f"{num_gpus} GPUs are visible; start {num_gpus} processes there"
        )
    # read by torch's "env://" and by DeepSpeed
    os.environ.update(
        RANK=str(group.rank),
        WORLD_SIZE=str(group.world_size),
        LOCAL_RANK=str(local_rank),
        MASTER_ADDR=group.address,
        MASTER_PORT=str(group.port),
    )
    if group.one_machine:
        for library in ("GLOO", "NCCL"):  # their own connections, unless the user names an interface
            os.environ.setdefault(f"{library}_SOCKET_IFNAME", "lo")
    try:
        store = _connect(group)
    except (DistError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(
            f"MASTER_ADDR={group.address} MASTER_PORT={group.port}: the rendezvous failed ({reason}); "
            "set MASTER_PORT to a free port"
        ) from error
    return DistributedContext(
        rank=group.rank, world_size=group.world_size, local_rank=local_rank, store=PrefixStore("imsm", store)
    )


def _connect(group: RendezvousInfo) -> TCPStore:
    """Return the group's store, which rank 0 holds unless torchrun does."""
    from torch.distributed import TCPStore

    if group.rank == 0 and not os.environ.get(_AGENT_STORE):
        return listening_store(group.address, group.port, world_size=group.world_size, loopback=group.one_machine)
    return TCPStore(group.address, group.port, group.world_size, is_master=False, timeout=_RENDEZVOUS_TIMEOUT)


def listening_store(address: str, port: int = 0, *, world_size: int | None = None, loopback: bool = True) -> TCPStore:
    """Return a store that listens on ``address`` only; with port 0 on a free port, its ``port``.

    With ``world_size`` it waits until as many processes have connected. Without ``loopback`` the address must be
    reachable from other machines.

    Raises:
        UserError: The address is not one of this machine, or only reachable from it, or the port is not free.
    """
    from torch.distributed import TCPStore

    given = f"MASTER_ADDR={address} MASTER_PORT={port}"
    try:
        family, _, _, _, target = socket.getaddrinfo(address, port, type=socket.SOCK_STREAM)[0]
        # torch itself would listen on all interfaces
        listener = socket.create_server(target[:2], family=family, backlog=1024)
    except OSError as error:
        raise UserError(
            f"{given}: the first process cannot listen there ({error.strerror or error}); set MASTER_ADDR to an "
            "address of its machine, and MASTER_PORT to a free port"
        ) from error
    name = str(target[0])
    # many distributions map a machine's own name to 127.0.1.1
    if not loopback and address not in (name, "localhost") and (name.startswith("127.") or name == "::1"):
        listener.close()
        raise UserError(
            f"{given}: is {name} on the first machine, which others cannot reach; set MASTER_ADDR to its IP address"
        )
    return TCPStore(
        address,
        listener.getsockname()[1],
        world_size,
        is_master=True,
        timeout=_RENDEZVOUS_TIMEOUT,
        wait_for_workers=world_size is not None,
        master_listen_fd=listener.detach(),
    )


def run_in_group(dist_context: DistributedContext, task: Callable[[], None], *, end_timeout: float = 10.0) -> None:
    """Run a task in a group that this package's launcher does not supervise.

    An error that all processes share is raised. After any other error this process exits, so that
    torchrun or srun also ends the processes that wait for it. At the end it waits ``end_timeout``
    seconds for the other processes.
    """
    try:
        task()
    except KeyboardInterrupt:
        _end_together(dist_context, code=STOPPED, timeout=end_timeout)
        raise
    except Exception as error:
        code = 2 if isinstance(error, UserError) else 1
        if _end_together(dist_context, code=code, text=str(error), timeout=end_timeout):
            raise
        expected = isinstance(error, UserError | RunError)
        prefix = "" if dist_context.is_main else f"process {dist_context.rank} of {dist_context.world_size}: "
        print_always(f"imsm: {prefix}{error}" if expected else f"{prefix}{traceback.format_exc()}")
        sys.stdout.flush()
        # not sys.exit: at exit the process group is destroyed, which can wait for the other processes
        os._exit(code)
    _end_together(dist_context, code=0, timeout=end_timeout)


def _end_together(dist_context: DistributedContext, *, code: int, text: str = "", timeout: float) -> bool:
    """Wait at the end of a run; return whether all processes ended with the same error ``text``."""
    # the jobs of a sweep share the store, so the keys of each job need their own number
    global _runs_ended
    _runs_ended += 1
    if dist_context.store is None or dist_context.world_size == 1:
        return True
    keys = [f"ended/{_runs_ended}/{rank}" for rank in range(dist_context.world_size)]
    try:
        dist_context.store.set(keys[dist_context.rank], text)
        # rank 0 may hold the store and has to end last
        if code == 0 and not dist_context.is_main:
            return True
        deadline = time.monotonic() + timeout
        while not dist_context.store.check(keys):
            if time.monotonic() > deadline:
                return False
            time.sleep(_POLL_SECONDS)
        return all(str(dist_context.store.get(key).decode()) == text for key in keys)
    except RuntimeError:  # the process that held the store is gone
        return False


def silence_other_ranks() -> None:
    """Redirect stdout and stderr to /dev/null unless this is rank 0; see `print_always`."""
    global _real_stderr
    try:
        group = detect_process_group()
    except UserError:
        return  # raised again when the group is joined
    if group is None or group.rank == 0:
        return
    # file descriptors, not sys.stdout: libraries in C and child processes print as well
    _real_stderr = os.dup(2)
    devnull = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):
        os.dup2(devnull, stream)
    os.close(devnull)


def print_always(text: str) -> None:
    """Print to stderr even in a silenced process."""
    sys.stderr.flush()
    os.write(_real_stderr, f"{text.rstrip()}\n".encode())


def _slurm_step(environment: Mapping[str, str], world_size: int) -> RendezvousInfo:
    nodes = environment.get("SLURM_STEP_NODELIST") or environment.get("SLURM_JOB_NODELIST")
    one_machine = environment.get("SLURM_STEP_NUM_NODES") == "1"
    address = environment.get("MASTER_ADDR") or (first_host(nodes) if nodes else None)
    address = LOOPBACK if one_machine else address
    if not address:
        raise UserError("SLURM_STEP_NODELIST: is not set; set MASTER_ADDR to the first node's name")
    if environment.get("MASTER_PORT"):
        port = _parse_int(environment, "MASTER_PORT")
    else:
        job, step = (int(environment.get(name, "0")) for name in ("SLURM_JOB_ID", "SLURM_STEP_ID"))
        # the same in all processes without communication; jobs on one node get different ports
        port = _FIRST_PORT + (37 * job + step) % _NUM_PORTS
    return RendezvousInfo(
        rank=_parse_int(environment, "SLURM_PROCID"),
        world_size=world_size,
        local_rank=_parse_int(environment, "SLURM_LOCALID"),
        address=address,
        port=port,
        one_machine=one_machine,
    )


def first_host(nodes: str) -> str:
    """Return the first host of a SLURM node list: "node[01-04,7],other" -> "node01"."""
    program = shutil.which("scontrol")
    if program is not None:
        command = [program, "show", "hostnames", nodes]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        names = result.stdout.split()
        if result.returncode == 0 and names:
            return names[0]
    # without scontrol: the first entry outside brackets, then the first number in them
    return re.sub(r"\[(\w+)[^\]]*\]", r"\1", re.split(r",(?![^\[]*\])", nodes)[0])


def _parse_int(environment: Mapping[str, str], name: str) -> int:
    text = environment[name]
    if not text.isdecimal():
        raise UserError(f"{name}={text}: must be a whole number")
    return int(text)
