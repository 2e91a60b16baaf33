"""Workers that meet: `python -m tests.processes.meeting FILE`, each doing what FILE names."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from imsm.errors import UserError
from imsm.processes.worker import run_worker
from imsm.processes.world import DistributedContext


def talk(settings: dict[str, Any], world: DistributedContext) -> None:
    """All learn of all, one after another as the first one says; then the second one breaks."""
    words = world.all_gather(f"I am {world.rank}")
    number = world.run_on_main(lambda: 7)
    path = Path(settings["folder"]) / f"heard-{world.rank}.json"
    path.write_text(json.dumps([words, number, world.size, world.local_rank]))
    world.all_gather("written")
    if settings.get("breaks") and world.rank == 1:
        raise ValueError("the second one broke")
    if settings.get("breaks"):
        world.all_gather("never answered")


def refuse(settings: dict[str, Any], world: DistributedContext) -> None:
    """The first one finds bad input; nobody goes on."""

    def look() -> None:
        raise UserError("data=x: is bad")

    world.run_on_main(look)
    raise AssertionError("not reached")


def main() -> None:
    file = Path(sys.argv[1])
    task = {"talk": talk, "refuse": refuse}[json.loads(file.read_text())["do"]]
    sys.exit(run_worker(file, task))


if __name__ == "__main__":
    main()
