"""What a program does to the disk, in order: flushes, renames and deletions."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


def record_disk_events(patch: pytest.MonkeyPatch) -> list[tuple[str, Path]]:
    """Return a list of (fsync, rename or delete, path), filled as they happen; a rename has its new path."""
    events: list[tuple[str, Path]] = []

    def recording(function: Callable[..., Any], name: str, path_of: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **keywords: Any) -> Any:
            path = Path(path_of(*arguments))
            done = function(*arguments, **keywords)
            if name != "delete" or not path.exists():
                events.append((name, path))
            return done

        return call

    patch.setattr(os, "fsync", recording(os.fsync, "fsync", lambda number: os.readlink(f"/proc/self/fd/{number}")))
    for module, name in ((os, "rename"), (os, "replace")):
        patch.setattr(module, name, recording(getattr(module, name), "rename", lambda source, target: target))
    patch.setattr(shutil, "rmtree", recording(shutil.rmtree, "delete", lambda path, *_: path))
    return events
