"""Measure rows one by one: each in its own try with a time limit, the file written after each.

A row that was measured without an error is not measured again, so a second call continues after a crash.
"""

from __future__ import annotations

import gc
import json
import signal
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from imsm.utils.files import write_atomic
from scripts.bench.gpu.bars import comparisons
from scripts.bench.gpu.rows import BUILD, MACHINE, Row
from scripts.bench.gpu.session import Session
from scripts.bench.result import describe

_LEAST_SECONDS = 8
"""A row is not started with less time left."""
_ENDED = "the process ended in this row"
_MAX_ENDED = 2
"""A row in which the process ended this often is not tried again."""


class RowTimeoutError(Exception):
    """A row took longer than it may."""


class Record:
    """The result file: settings and machine, the rows, and their comparisons.

    Raises:
        ValueError: the file exists and was measured with other settings or another commit.
    """

    def __init__(self, path: Path, *, session: Session, settings: dict[str, Any], commit: str | None) -> None:
        self.path, self._session = path, session
        content = describe(session.setup.device, settings=settings, commit_at_start=commit)
        self._content: dict[str, Any] = content | {"comparisons": [], "curves": [], "left_out": [], "rows": {}}
        if not path.exists():
            return
        earlier = json.loads(path.read_text(encoding="utf-8"))
        for key in ("device", "commit", "versions", "settings"):
            if earlier.get(key) != self._content[key]:
                raise ValueError(
                    f"--output={path.parent}: {path.name} was measured with {key} {earlier.get(key)}, now "
                    f"{self._content[key]}; choose another folder, or remove the file"
                )
        self._content["rows"] = earlier["rows"]

    @property
    def content(self) -> dict[str, Any]:
        """The content of the file."""
        return self._content

    @property
    def rows(self) -> dict[str, Any]:
        """Each row's values, or its error, by name."""
        rows: dict[str, Any] = self._content["rows"]
        return rows

    def pending(self, rows: Sequence[Row]) -> list[Row]:
        """Return the rows to measure: new ones, then those that failed, least tries first."""
        failed = [row for row in rows if "error" in self.rows.get(row.name, {})]
        failed = [row for row in failed if self.rows[row.name].get("ended", 0) < _MAX_ENDED]
        failed.sort(key=lambda row: self.rows[row.name].get("ended", 0))
        return [*(row for row in rows if row.name not in self.rows), *failed]

    def write(self, name: str, values: dict[str, Any]) -> None:
        """Set a row and write the file."""
        self.rows[name] = values
        is_gpu = self._session.is_gpu
        self._content["comparisons"] = [each.record() for each in comparisons(self.rows, is_gpu=is_gpu)]
        self._content["left_out"] = [
            {"name": row, "needs": found["needs"]} for row, found in self.rows.items() if found.get("needs")
        ]
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(self.path, json.dumps(self._content, indent=1) + "\n")


def measure_rows(record: Record, session: Session, rows: Sequence[Row], *, seconds: float) -> list[str]:
    """Measure the pending ``rows`` in at most ``seconds`` and return the names of those without time."""
    deadline = time.monotonic() + seconds
    for row in (MACHINE, BUILD):
        if row is BUILD or row in record.pending([row]):
            measure_row(record, session, row, seconds=row.seconds)
    if "error" in record.rows[BUILD.name]:
        return []
    missed = []
    for row in record.pending(rows):
        left = deadline - time.monotonic()
        if left < _LEAST_SECONDS:
            missed.append(row.name)
            continue
        measure_row(record, session, row, seconds=min(row.seconds, int(left)))
    return missed


def measure_row(record: Record, session: Session, row: Row, *, seconds: int) -> None:
    """Measure one row; an error is its result, and the next row starts with the memory freed."""
    started = time.monotonic()
    ended = record.rows.get(row.name, {}).get("ended", 0)
    # in the file if the process is killed in this row
    record.write(row.name, {"error": _ENDED, "ended": ended + 1})
    try:
        with _time_limit(seconds):
            found = row.measure(session)
    except ModuleNotFoundError as error:
        found = {"error": str(error), "needs": error.name}
    except Exception as error:
        found = {"error": f"{type(error).__name__}: {str(error)[:600]}", "trace": traceback.format_exc()[-1500:]}
    found["seconds"] = round(time.monotonic() - started, 1)
    record.write(row.name, found)
    print(f"{row.name}: {found.get('error', 'measured')} ({found['seconds']} s)", flush=True)
    gc.collect()
    if session.is_gpu:
        # ends this process if the device is unusable after an error; the next call measures the other rows
        torch.cuda.synchronize()
        torch.cuda.empty_cache()


@contextmanager
def _time_limit(seconds: int) -> Iterator[None]:
    """Raise `RowTimeoutError` in the main thread after ``seconds``."""

    def late(*_: object) -> None:
        raise RowTimeoutError(f"more than {seconds} s")

    before: Callable[..., Any] | int | None = signal.signal(signal.SIGALRM, late)
    signal.alarm(max(1, seconds))
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
