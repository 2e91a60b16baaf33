"""A benchmark's rows: ours beside theirs, in a JSON file and as a table."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from rich.table import Table

ROOT = Path(__file__).resolve().parent.parent
"""The checkout."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """One row: ``bar`` is the largest ratio that is good enough; None: no bar is set."""

    name: str
    ours: float
    theirs: float
    unit: str
    bar: float | None

    def record(self) -> dict[str, Any]:
        """As the JSON file keeps it."""
        ratio = self.ours / self.theirs
        met = None if self.bar is None else ratio <= self.bar
        rounded = {"ours": round(self.ours, 4), "theirs": round(self.theirs, 4)}
        return {**asdict(self), **rounded, "ratio": round(ratio, 4), "met": met}


def write(comparisons: Sequence[Comparison], path: Path, *, settings: dict[str, Any]) -> None:
    """Write the comparisons and what they were made with."""
    device = f"cpu, {torch.get_num_threads()} threads"
    if settings["device"].startswith("cuda"):
        device = torch.cuda.get_device_name()
    record = {
        "comparisons": [comparison.record() for comparison in comparisons],
        "device": device,
        "commit": _commit(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "torch": torch.__version__,
        "settings": settings,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def _commit() -> str | None:
    """The commit of this checkout, "-dirty" if its code was changed; None outside of git."""
    command = ["git", "describe", "--always", "--abbrev=40", "--dirty", "--exclude=*"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    return done.stdout.strip() or None


def table(comparisons: Sequence[Comparison]) -> Table:
    """The comparisons for a terminal."""
    found = Table("", "IMSM", "vanilla", "", "ratio", "bar", "")
    for row in (comparison.record() for comparison in comparisons):
        verdict = {None: "", True: "met", False: "[bold]not met[/]"}[row["met"]]
        bar = "" if row["bar"] is None else f"{row['bar']:.2f}"
        sizes = [f"{row[arm]:.4g}" for arm in ("ours", "theirs")]
        found.add_row(row["name"], *sizes, row["unit"], f"{row['ratio']:.2f}", bar, verdict)
    return found
