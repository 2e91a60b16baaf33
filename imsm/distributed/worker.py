"""What one of several processes of a run does around its work: meet the others, end with them."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from imsm.distributed.rendezvous import detect_process_group, join_process_group, run_in_group, silence_other_ranks
from imsm.distributed.supervisor import STOPPED, kill_on_parent_exit
from imsm.utils.errors import RunError, UserError

if TYPE_CHECKING:
    from imsm.distributed.context import DistributedContext

LAUNCHER = "IMSM_LAUNCHER"
"""The launcher's process id, in a worker's environment."""
ERROR_FILE = "IMSM_ERROR_FILE"
"""Where a worker leaves its error for the launcher, in its environment."""


def run_worker(file: Path, task: Callable[[dict[str, Any], DistributedContext], None]) -> int:
    """Be one process of a run; returns its exit code.

    Args:
        file: the saved settings.
        task: what to do with them, together with the other processes.
    """
    launcher = os.environ.get(LAUNCHER)
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)  # a checkpoint is asked for before training
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    kill_on_parent_exit(parent=int(launcher) if launcher else None)
    if launcher is None:
        silence_other_ranks()
    try:
        settings = json.loads(file.read_text(encoding="utf-8"))
        for name, value in settings.get("environment", {}).items():
            os.environ.setdefault(name, value)
        group = detect_process_group()
        if group is None:
            raise UserError(f"{file}: is for processes that imsm.run starts")
        from imsm.distributed.gpus import visible_gpus

        dist_context = join_process_group(group, gpus=0 if settings.get("device") == "cpu" else visible_gpus())
        if launcher is None:
            run_in_group(dist_context, lambda: task(settings, dist_context))
        else:
            task(settings, dist_context)
    except KeyboardInterrupt:
        return STOPPED
    except Exception as error:
        _report_error(error)
        return 2 if isinstance(error, UserError) else 1
    return 0


def _report_error(error: Exception) -> None:
    """Leave the error for the launcher, which knows who failed first; without one, say it."""
    expected = isinstance(error, UserError | RunError)
    trace = traceback.format_exc()
    file = os.environ.get(ERROR_FILE)
    if file is not None:
        kind = "UserError" if isinstance(error, UserError) else type(error).__name__
        told = {"kind": kind, "text": str(error), "trace": trace, "time": time.time()}
        Path(file).write_text(json.dumps(told), encoding="utf-8")
        if os.environ["RANK"] == "0":  # it shares the launcher's terminal
            return
    print(f"imsm: {error}" if expected else trace, file=sys.stderr, flush=True)
