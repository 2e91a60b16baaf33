"""`failed.json` in a run's folder: why the run ended early, until the same run starts again."""

from __future__ import annotations

import json
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from imsm.files import write_atomic

FILE = "failed.json"


def write_failure(folder: Path, *, error: str, exit_code: int, command: str) -> None:
    """Note in a run's folder how its run ended; a folder that is not there is not made.

    Args:
        folder: the run's.
        error: what went wrong, in one line.
        exit_code: what the run's own command would have ended with.
        command: what makes the run.
    """
    if not folder.is_dir():
        return
    now = time.strftime("%Y-%m-%dT%H:%M:%S%z")
    noted = {"error": error, "exit_code": exit_code, "time": now, "command": command}
    with suppress(OSError):  # a full disk may be what went wrong
        write_atomic(folder / FILE, json.dumps(noted, indent=2, ensure_ascii=False) + "\n")


def read_failure(folder: Path) -> dict[str, Any] | None:
    """What `write_failure` noted; None if the run did not fail."""
    try:
        noted = json.loads((folder / FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return noted if isinstance(noted, dict) and "error" in noted else None


def clear_failure(folder: Path) -> None:
    """Forget an earlier failure: the run starts again, or is finished."""
    with suppress(OSError):
        (folder / FILE).unlink(missing_ok=True)
