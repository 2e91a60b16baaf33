"""Workers that join a group: `python -m tests.distributed.programs.meeting FILE` runs FILE's action."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
from torch import distributed

from imsm.distributed.context import DistributedContext
from imsm.distributed.process_group import init_process_group
from imsm.distributed.worker import run_worker
from imsm.utils.errors import UserError


def own_listeners() -> list[str]:
    """Return the addresses, in hexadecimal digits, on which this process accepts TCP connections."""
    links = [os.readlink(path) for path in Path("/proc/self/fd").iterdir() if path.is_symlink()]
    rows = [line.split() for name in ("tcp", "tcp6") for line in Path(f"/proc/net/{name}").read_text().splitlines()]
    return [row[1].partition(":")[0] for row in rows if row[3] == "0A" and f"socket:[{row[9]}]" in links]


def communicate(settings: dict[str, Any], dist_context: DistributedContext) -> None:
    """Exchange messages and write what was received; rank 1 then fails if ``fails`` is set."""
    texts = dist_context.all_gather(f"I am {dist_context.rank}")
    number = dist_context.run_on_main(lambda: 7)
    path = Path(settings["folder"]) / f"received-{dist_context.rank}.json"
    path.write_text(json.dumps([texts, number, dist_context.world_size, dist_context.local_rank]))
    init_process_group(dist_context, device=torch.device("cpu"), timeout_minutes=1.0)
    distributed.barrier()
    (Path(settings["folder"]) / f"listening-{dist_context.rank}.json").write_text(json.dumps(own_listeners()))
    dist_context.all_gather("written")
    if settings.get("fails") and dist_context.rank == 1:
        raise ValueError("rank 1 failed")
    if settings.get("fails"):
        dist_context.all_gather("never answered")


def reject(settings: dict[str, Any], dist_context: DistributedContext) -> None:
    """Raise a UserError on rank 0, and thereby on all ranks."""

    def fail() -> None:
        raise UserError("data=x: is bad")

    dist_context.run_on_main(fail)
    raise AssertionError("not reached")


def main() -> None:
    path = Path(sys.argv[1])
    task = {"communicate": communicate, "reject": reject}[json.loads(path.read_text())["action"]]
    sys.exit(run_worker(path, task))


if __name__ == "__main__":
    main()
