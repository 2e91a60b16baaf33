"""Kill a small run before every one of its writes in turn, and give the same command again.

    python -m tests.helpers.crash_at_write FOLDER EVERY override...

Each point is a process of its own, forked from this one, which computes nothing itself: it only
imports what they import. Prints a line per point that went wrong, and at the end how many there were.
"""

from __future__ import annotations

import gc
import importlib
import os
import shutil
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from imsm.pipeline.run import run_experiment
from scripts.crash_test import differences
from tests.helpers.config import config
from tests.helpers.figures import no_figures

_WRITES = ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate")


def in_child(work: Callable[[], None], log: Path) -> int:
    """Do ``work`` in a forked process; returns its exit code, negative for a signal."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            told = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(told, 1)
            os.dup2(told, 2)
            work()
            code = 0
        except BaseException as error:
            print(f"{type(error).__name__}: {error}", file=sys.stderr)
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def import_all(names: list[str]) -> None:
    """Import modules that the forked processes would each import; their objects are never collected."""
    for name in names:
        with suppress(ImportError):  # made at run time
            importlib.import_module(name)
    gc.freeze()


def kill_before(root: Path, number: int, said: Path) -> None:
    """From now on count what is written below ``root``; end this process before that many.

    What the last write was about to be is left in ``said``, which lies elsewhere.
    """
    count = 0

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal count
        writing = event in _WRITES
        if event == "open":
            writing = isinstance(arguments[2], int) and bool(arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))
        if not writing or not _where(event, arguments).startswith(str(root)):
            return
        count += 1
        if count == number:
            descriptor = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.write(descriptor, f"{event} {_where(event, arguments)}".encode())
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


def _where(event: str, arguments: tuple[Any, ...]) -> str:
    """The path that an event is about; removing a folder gives names within open folders."""
    path = str(arguments[0])
    if event in ("os.remove", "os.rmdir") and arguments[1] >= 0:
        return f"{os.readlink(f'/proc/self/fd/{arguments[1]}')}/{path}"
    return path


def main() -> None:
    """Run the command line; exit code 1 if any point went wrong."""
    folder, every, chosen = Path(sys.argv[1]), int(sys.argv[2]), config(*sys.argv[3:])
    torch.set_num_threads(1)
    whole, log, said = folder / "whole", folder / "log", folder / "said"

    def undisturbed() -> None:
        run_experiment(chosen, runs_root=whole)
        said.write_text("\n".join(sys.modules))

    if in_child(undisturbed, log) != 0:
        sys.exit(log.read_text())
    import_all(said.read_text().splitlines())
    number, wrong, points = 1, 0, 0
    while True:
        parts = folder / "parts"
        shutil.rmtree(parts, ignore_errors=True)

        def killed(root: Path = parts, number: int = number) -> None:
            kill_before(root, number, said)
            run_experiment(chosen, runs_root=root)

        if in_child(killed, log) == 0:
            break  # it ends before so many writes
        points += 1
        errors = []
        if in_child(lambda root=parts: run_experiment(chosen, runs_root=root), log) != 0:  # type: ignore[misc]
            errors.append(log.read_text().strip().splitlines()[-1])
        errors = errors or differences(whole, parts)
        if errors:
            print(f"{number}, before {said.read_text()}: {'; '.join(errors)}", flush=True)
        wrong += bool(errors)
        number += every
    print(f"{points - wrong}/{points} went on to the same end")
    sys.exit(wrong > 0)


if __name__ == "__main__":
    with no_figures():
        main()
