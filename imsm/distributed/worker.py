"""What every worker process does around its task: join the group, report errors, exit."""

import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from imsm.distributed.context import DistributedContext
from imsm.distributed.gpus import visible_gpus
from imsm.distributed.rendezvous import detect_process_group, join_process_group, run_in_group, silence_other_ranks
from imsm.distributed.supervisor import kill_on_parent_exit
from imsm.utils import stop_signals
from imsm.utils.control_characters import escape_controls
from imsm.utils.errors import RunError, UserError
from imsm.utils.json_files import read_json

LAUNCHER_PID = "IMSM_LAUNCHER"
"""Environment variable with the launcher's process id."""
ERROR_FILE = "IMSM_ERROR_FILE"
"""Environment variable with the path where a worker records its error for the launcher."""


def run_worker(settings_path: Path, task: Callable[[dict[str, Any], DistributedContext], None]) -> int:
    """Join the process group, run ``task`` on the saved settings and return the exit code."""
    launcher = os.environ.get(LAUNCHER_PID)
    # a checkpoint may be requested before training installs its handler
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    kill_on_parent_exit(parent_pid=int(launcher) if launcher else None)
    if launcher is None:
        silence_other_ranks()
    try:
        settings = read_json(settings_path, fix="start the run again with `imsm run`")
        # before libraries that read them are imported; a node's own values win
        for name, value in settings.get("environment", {}).items():
            os.environ.setdefault(name, value)
        group = detect_process_group()
        if group is None:
            raise UserError(f"{settings_path}: not started as a worker; use `imsm run`")
        dist_context = join_process_group(group, num_gpus=0 if settings.get("device") == "cpu" else visible_gpus())
        if launcher is None:
            run_in_group(dist_context, lambda: task(settings, dist_context))
        else:
            task(settings, dist_context)
    except KeyboardInterrupt:
        return stop_signals.exit_code()
    except Exception as error:
        _report_error(error)
        return 2 if isinstance(error, UserError) else 1
    return 0


def _report_error(error: Exception) -> None:
    """Record the error for the launcher, which raises the first one; print it without a launcher."""
    expected = isinstance(error, UserError | RunError)
    trace = traceback.format_exc()
    error_file = os.environ.get(ERROR_FILE)
    if error_file is not None:
        kind = "UserError" if isinstance(error, UserError) else type(error).__name__
        record = {"kind": kind, "text": str(error), "trace": trace, "time": time.time()}
        Path(error_file).write_text(json.dumps(record), encoding="utf-8")
        # rank 0 shares the terminal of the launcher, which prints the error
        if os.environ["RANK"] == "0":
            return
    print(escape_controls(f"imsm: {error}") if expected else trace, file=sys.stderr, flush=True)
