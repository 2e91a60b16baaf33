"""Remove what killed processes left behind: temporary files, checkpoints and folders."""

import re
import shutil
import time
from contextlib import suppress
from pathlib import Path

from imsm.utils.run_dir import RunDir

# `write_atomic` names the process; the others are names of earlier versions
_TEMPORARY = re.compile(r"\.(?:(?P<pid>\d+)(?:-[0-9a-f]{8})?|png)\.tmp$")
_FOLDER = re.compile(r"(?P<pid>\d+)-")
# a process of another machine may be writing to a shared folder; a write takes less than this
_SHARED_SECONDS = 600.0
_UNNAMED_SECONDS = 86_400.0


def remove_run_leftovers(run: RunDir) -> None:
    """Remove the leftovers in a run folder, which this process has locked."""
    remove_temporaries(run.path, older_than=0.0)
    if run.is_trained and (run.model / "config.json").is_file():
        shutil.rmtree(run.checkpoints, ignore_errors=True)
        return
    for replaced in run.checkpoints.glob(".step-*.old"):
        checkpoint = replaced.with_name(replaced.name[1:].removesuffix(".old"))
        # killed between the two renames that replace a checkpoint
        if not checkpoint.exists():
            with suppress(OSError):
                replaced.rename(checkpoint)
    for pattern in (".step-*.new", ".step-*.old", "abandoned-step-*"):
        for folder in run.checkpoints.glob(pattern):
            shutil.rmtree(folder, ignore_errors=True)


def remove_temporaries(folder: Path, *, older_than: float = _SHARED_SECONDS) -> None:
    """Remove the temporary files below ``folder`` whose process has ended, and that have this age in seconds."""
    for path in folder.rglob("*.tmp"):
        found = _TEMPORARY.search(path.name)
        if found and not _is_running(found["pid"]) and _age(path) >= older_than:
            with suppress(OSError):
                path.unlink()


def remove_folders(parent: Path, *, prefix: str) -> None:
    """Remove the folders ``<prefix><process id>-...`` of this user whose process has ended."""
    for path in parent.glob(f"{prefix}*"):
        found = _FOLDER.match(path.name.removeprefix(prefix))
        # earlier versions did not name the process
        abandoned = not _is_running(found["pid"]) if found else _age(path) > _UNNAMED_SECONDS
        if abandoned and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)


def _is_running(pid: str | None) -> bool:
    """Return whether a process of this machine has this id; its own user need not be ours."""
    return pid is not None and Path(f"/proc/{pid}").exists()


def _age(path: Path) -> float:
    """Return the seconds since the last write; -1 if the file is gone."""
    try:
        return time.time() - path.stat().st_mtime
    except OSError:
        return -1.0
