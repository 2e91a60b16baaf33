"""A launcher of two plain workers, to be killed: `python -m tests.distributed.programs.starter FOLDER`."""

from __future__ import annotations

import sys
from pathlib import Path

from imsm.distributed.launcher import launch

if __name__ == "__main__":
    folder = Path(sys.argv[1])
    settings = {"folder": str(folder), "actions": ["ignore_signals", "ignore_signals"]}
    launch(settings, run_dir=folder / "run", nproc_per_node=2, module="tests.distributed.programs.plain")
