"""The benchmark's result file, and its rows as a table in the terminal."""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from scripts.bench.comparison import Comparison

if TYPE_CHECKING:
    from scripts.bench.curves import Curve

ROOT = Path(__file__).resolve().parents[2]
"""The checkout."""


def write_result(
    path: Path,
    rows: Sequence[Comparison],
    *,
    curves: Sequence[Curve],
    left_out: Sequence[dict[str, str]],
    device: str,
    settings: dict[str, Any],
    commit_at_start: str | None,
) -> dict[str, Any]:
    """Write the measurements with device, versions and settings; return the record.

    ``commit_at_start`` is the commit when measuring began; if it has changed since, both are recorded.
    """
    record = {
        "comparisons": [row.record() for row in rows],
        "curves": [curve.record() for curve in curves],
        "left_out": list(left_out),
        **describe(device, settings=settings, commit_at_start=commit_at_start),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    return record


def describe(device: str, *, settings: dict[str, Any], commit_at_start: str | None) -> dict[str, Any]:
    """Return device, commit, date, versions and settings of a measurement."""
    ended = commit()
    return {
        "device": _described(device),
        "commit": commit_at_start if commit_at_start == ended else f"{commit_at_start}, at the end {ended}",
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": _versions(),
        "settings": settings,
    }


def device_name(device: str) -> str:
    """Return the device as a file name."""
    return re.sub(r"\W+", "_", _described(device).lower()).strip("_")


def print_table(record: dict[str, Any]) -> None:
    """Print the comparisons as a table, or as plain lines without rich."""
    rows = [row_cells(row) for row in record["comparisons"]]
    try:
        from rich.console import Console
        from rich.table import Table
    except ImportError:
        print("\n".join("  ".join(row) for row in rows))
        return
    table = Table("", "ours", "theirs", "", "ratio", "bar", "")
    for row in rows:
        table.add_row(*row)
    Console().print(table)


def row_cells(row: dict[str, Any]) -> list[str]:
    """Return a comparison's cells: name, ours, theirs, unit, ratio, bar, verdict."""
    sign = "≥" if row["at_least"] else "≤"
    bar = "" if row["bar"] is None else f"{sign} {row['bar']:g}"
    verdict = {None: "", True: "met", False: "floor" if row["floor"] else "not met"}[row["met"]]
    sizes = [f"{row[side]:.4g}" for side in ("ours", "theirs")]
    return [row["name"], *sizes, row["unit"], f"{row['ratio']:.2f}", bar, verdict]


def _described(device: str) -> str:
    if device.startswith("cuda"):
        return torch.cuda.get_device_name()
    return f"{_processor()}, {torch.get_num_threads()} threads"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def _versions() -> dict[str, str]:
    import peft
    import transformers

    found = {"torch": torch.__version__, "transformers": transformers.__version__}
    return found | {"peft": peft.__version__, "python": platform.python_version()}


def commit() -> str | None:
    """Return the commit of this checkout, with "-dirty" if files changed; None outside git."""
    command = ["git", "describe", "--always", "--abbrev=40", "--dirty", "--exclude=*"]
    environment = {**os.environ, "GIT_OPTIONAL_LOCKS": "0"}
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, env=environment)
    except OSError:
        return None
    return done.stdout.strip() or None
