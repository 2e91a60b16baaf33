"""Processes that something else has started (torchrun, srun, our launcher) meet as one `World`.

They meet at a store and exchange text there; torch's process group is opened around the training
alone (`imsm.distributed.process_group`), so that nothing slow happens inside a collective's time-out.
"""

from __future__ import annotations

import os
import re
import shutil
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

if TYPE_CHECKING:
    from torch.distributed import Store

_TORCHRUN = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
_FIRST_PORT, _PORTS = 12000, 20000
"""A SLURM step's port, by its job: below those that a system hands out by itself."""
_MEETING = timedelta(minutes=30)
_FAREWELL = 10.0
"""Seconds in which processes that carried the same run out end after one another."""
_PAUSE = 0.02


@dataclass(frozen=True, kw_only=True)
class RendezvousInfo:
    """Which process of a group this one is, and where they meet.

    Attributes:
        rank: of this process, of all nodes.
        size: how many there are.
        local_rank: of this process on its node.
        address: of the machine where they meet.
        port: there.
    """

    rank: int
    size: int
    local_rank: int
    address: str
    port: int


def detect_process_group(environment: Mapping[str, str] = os.environ) -> RendezvousInfo | None:
    """The group that this process was started in; None if it stands alone.

    Raises:
        UserError: the environment says that there is a group, but not where it meets.
    """
    if all(environment.get(name) for name in _TORCHRUN):
        return RendezvousInfo(
            rank=_number(environment, "RANK"),
            size=_number(environment, "WORLD_SIZE"),
            local_rank=_number(environment, "LOCAL_RANK"),
            address=environment["MASTER_ADDR"],
            port=_number(environment, "MASTER_PORT"),
        )
    needed = ("SLURM_PROCID", "SLURM_LOCALID", "SLURM_STEP_NUM_TASKS")  # a batch script lacks one
    if all(name in environment for name in needed):
        size = _number(environment, "SLURM_STEP_NUM_TASKS")
        return _slurm_step(environment, size) if size > 1 else None
    return None


@cache
def join_process_group(group: RendezvousInfo, *, gpus: int = 0) -> DistributedContext:
    """Meet the other processes; the members of a sweep stay together.

    Args:
        group: as `joined` found it.
        gpus: that this process sees; under `srun --gpus-per-task 1` it is its own alone.

    Raises:
        UserError: the processes cannot meet, or this one has no GPU of its own.
    """
    from torch.distributed import DistError, PrefixStore, rendezvous

    local = group.local_rank if gpus != 1 else 0
    if 0 < gpus <= local:
        raise UserError(
            f"process {group.rank} of {group.size}: is number {local + 1} on its machine, where "
            f"{gpus} GPUs are visible; start {gpus} processes there"
        )
    os.environ.update(  # DeepSpeed reads them
        RANK=str(group.rank),
        WORLD_SIZE=str(group.size),
        LOCAL_RANK=str(local),
        MASTER_ADDR=group.address,
        MASTER_PORT=str(group.port),
    )
    try:
        store: Store = next(iter(rendezvous("env://", timeout=_MEETING)))[0]
    except (DistError, RuntimeError) as error:
        first = str(error).strip().splitlines()[0]
        raise UserError(
            f"MASTER_ADDR={group.address} MASTER_PORT={group.port}: the processes cannot meet "
            f"there ({first}); set MASTER_PORT to a free port"
        ) from error
    return DistributedContext(rank=group.rank, size=group.size, local_rank=local, store=PrefixStore("imsm", store))


_ends = 0


def run_in_group(dist_context: DistributedContext, task: Callable[[], None]) -> None:
    """Do a run's work in one of several processes that no launcher of ours watches over.

    An error that all have in common is raised; after any other one this process ends, since the
    others wait for it: what started them then ends them too.
    """
    try:
        task()
    except KeyboardInterrupt:
        _end_together(dist_context, code=STOPPED)
        raise
    except Exception as error:
        code = 2 if isinstance(error, UserError) else 1
        if _end_together(dist_context, code=code, text=str(error)):
            raise
        expected = isinstance(error, UserError | RunError)
        who = "" if dist_context.is_main else f"process {dist_context.rank} of {dist_context.size}: "
        print_always(f"imsm: {who}{error}" if expected else f"{who}{traceback.format_exc()}")
        sys.stdout.flush()
        os._exit(code)
    _end_together(dist_context, code=0)


def _end_together(dist_context: DistributedContext, *, code: int, text: str = "") -> bool:
    """Wait a little for the others at the end of a run: the first one may hold what they meet at.

    Args:
        dist_context: this process and those beside it.
        code: with which this one ends.
        text: its error.

    Returns:
        Whether all others ended too, and the first one with the same error.
    """
    global _ends
    _ends += 1
    if dist_context.store is None or dist_context.size == 1:
        return True
    keys = [f"ended/{_ends}/{rank}" for rank in range(dist_context.size)]
    try:
        dist_context.store.set(keys[dist_context.rank], text)
        if code == 0 and not dist_context.is_main:
            return True
        until = time.monotonic() + _FAREWELL
        while not dist_context.store.check(keys):
            if time.monotonic() > until:
                return False
            time.sleep(_PAUSE)
        return all(str(dist_context.store.get(key).decode()) == text for key in keys)
    except RuntimeError:  # the store went with the process that held it
        return False


_real_stderr = 2


def silence_other_ranks() -> None:
    """In all processes of a group but the first, only `tell` reaches the terminal from here on."""
    global _real_stderr
    try:
        group = detect_process_group()
    except UserError:
        return  # told where the group is entered
    if group is None or group.rank == 0:
        return
    _real_stderr = os.dup(2)
    nothing = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):
        os.dup2(nothing, stream)
    os.close(nothing)


def print_always(text: str) -> None:
    """Say what must be seen even of a silent process."""
    sys.stderr.flush()
    os.write(_real_stderr, f"{text.rstrip()}\n".encode())


def _slurm_step(environment: Mapping[str, str], size: int) -> RendezvousInfo:
    nodes = environment.get("SLURM_STEP_NODELIST") or environment.get("SLURM_JOB_NODELIST")
    address = environment.get("MASTER_ADDR") or (first_host(nodes) if nodes else None)
    if not address:
        raise UserError("SLURM_STEP_NODELIST: is not set; set MASTER_ADDR to the first node's name")
    if environment.get("MASTER_PORT"):
        port = _number(environment, "MASTER_PORT")
    else:
        job, step = (int(environment.get(name, "0")) for name in ("SLURM_JOB_ID", "SLURM_STEP_ID"))
        port = _FIRST_PORT + (37 * job + step) % _PORTS
    return RendezvousInfo(
        rank=_number(environment, "SLURM_PROCID"),
        size=size,
        local_rank=_number(environment, "SLURM_LOCALID"),
        address=address,
        port=port,
    )


def first_host(nodes: str) -> str:
    """The first name of SLURM's short form: "node[01-04,7],other" gives "node01"."""
    program = shutil.which("scontrol")
    if program is not None:
        asked = [program, "show", "hostnames", nodes]
        found = subprocess.run(asked, capture_output=True, text=True, check=False)
        names = found.stdout.split()
        if found.returncode == 0 and names:
            return names[0]
    return re.sub(r"\[(\w+)[^\]]*\]", r"\1", re.split(r",(?![^\[]*\])", nodes)[0])


def _number(environment: Mapping[str, str], name: str) -> int:
    text = environment[name]
    if not text.isdecimal():
        raise UserError(f"{name}={text}: must be a whole number")
    return int(text)
