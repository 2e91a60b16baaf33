"""Workers that meet: `python -m tests.distributed.programs.meeting FILE`, each doing what FILE names."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from imsm.distributed.context import DistributedContext
from imsm.distributed.worker import run_worker
from imsm.utils.errors import UserError


def talk(settings: dict[str, Any], dist_context: DistributedContext) -> None:
    """All learn of all, one after another as the first one says; then the second one breaks."""
    words = dist_context.all_gather(f"I am {dist_context.rank}")
    number = dist_context.run_on_main(lambda: 7)
    path = Path(settings["folder"]) / f"heard-{dist_context.rank}.json"
    path.write_text(json.dumps([words, number, dist_context.world_size, dist_context.local_rank]))
    dist_context.all_gather("written")
    if settings.get("breaks") and dist_context.rank == 1:
        raise ValueError("the second one broke")
    if settings.get("breaks"):
        dist_context.all_gather("never answered")


def refuse(settings: dict[str, Any], dist_context: DistributedContext) -> None:
    """The first one finds bad input; nobody goes on."""

    def look() -> None:
        raise UserError("data=x: is bad")

    dist_context.run_on_main(look)
    raise AssertionError("not reached")


def main() -> None:
    file = Path(sys.argv[1])
    task = {"talk": talk, "refuse": refuse}[json.loads(file.read_text())["do"]]
    sys.exit(run_worker(file, task))


if __name__ == "__main__":
    main()
