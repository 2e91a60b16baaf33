"""A worker that does not import torch: `python -m tests.distributed.programs.plain FILE`."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path

from imsm.distributed.supervisor import kill_on_parent_exit
from imsm.distributed.worker import LAUNCHER_PID

MAX_SECONDS = 60.0


def main() -> None:
    settings = json.loads(Path(sys.argv[1]).read_text())
    rank = int(os.environ["RANK"])
    folder, action = Path(settings["folder"]), settings["actions"][rank]
    kill_on_parent_exit(parent_pid=int(os.environ[LAUNCHER_PID]))
    received: list[int] = []
    waits = action in ("wait", "ignore_signals")
    if waits:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
            signal.signal(number, lambda number, frame: received.append(number))
    names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_PORT", "OMP_NUM_THREADS")
    environment = {name: os.environ[name] for name in names}
    print(f"rank {rank}: {action}", flush=True)
    (folder / f"ready-{rank}").write_text(json.dumps({"pid": os.getpid(), **environment}))
    while len(list(folder.glob("ready-*"))) < int(os.environ["WORLD_SIZE"]):
        time.sleep(0.01)
    if action == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if action == "exit":
        sys.exit(3)
    deadline = time.monotonic() + MAX_SECONDS
    while waits and time.monotonic() < deadline:
        time.sleep(0.02)
        if action == "wait" and {signal.SIGINT, signal.SIGTERM} & set(received):
            time.sleep(0.3)  # time for a signal that should not arrive
            (folder / f"received-{rank}").write_text(json.dumps(received))
            sys.exit(130)


if __name__ == "__main__":
    main()
