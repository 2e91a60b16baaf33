"""A worker that needs no torch: `python -m tests.distributed.programs.plain FILE` does what FILE says."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path

from imsm.distributed.supervisor import kill_on_parent_exit
from imsm.distributed.worker import LAUNCHER_PID

SECONDS = 60.0


def main() -> None:
    settings = json.loads(Path(sys.argv[1]).read_text())
    rank = int(os.environ["RANK"])
    folder, do = Path(settings["folder"]), settings["do"][rank]
    kill_on_parent_exit(parent_pid=int(os.environ[LAUNCHER_PID]))
    seen: list[int] = []
    if do in ("wait", "deaf"):
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
            signal.signal(number, lambda number, frame: seen.append(number))
    names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_PORT", "OMP_NUM_THREADS")
    shown = {name: os.environ[name] for name in names}
    print(f"rank {rank} says {do}", flush=True)
    (folder / f"ready-{rank}").write_text(json.dumps({"pid": os.getpid(), **shown}))
    while len(list(folder.glob("ready-*"))) < int(os.environ["WORLD_SIZE"]):
        time.sleep(0.01)
    if do == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if do == "exit":
        sys.exit(3)
    until = time.monotonic() + SECONDS
    while do in ("wait", "deaf") and time.monotonic() < until:
        time.sleep(0.02)
        if do == "wait" and {signal.SIGINT, signal.SIGTERM} & set(seen):
            time.sleep(0.3)  # time for a signal that should not come
            (folder / f"seen-{rank}").write_text(json.dumps(seen))
            sys.exit(130)


if __name__ == "__main__":
    main()
