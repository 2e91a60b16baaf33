"""Read a run's training log."""

import json
import os
from pathlib import Path
from typing import Any

import pandas

from imsm.utils.errors import UserError
from imsm.utils.json_files import read_text

LOG = "log.jsonl"
_FIX = "the curves of the report lack it; the scores do not depend on it"


def read_training_log(folder: Path) -> pandas.DataFrame:
    """Return one row per step with step, loss, gate_mean, etc.; empty without a log.

    Damaged lines are left out; `training_log_error` names them.
    """
    rows, _ = _read(folder)
    table = pandas.DataFrame(rows)
    if table.empty:
        return table
    # a resumed run logs the steps since its checkpoint again
    return table.drop_duplicates("step", keep="last").sort_values("step").reset_index(drop=True)


def training_log_error(folder: Path) -> str | None:
    """Return which part of a run's log cannot be read, or None; a run without a log has no error."""
    return _read(folder)[1]


def _read(folder: Path) -> tuple[list[dict[str, Any]], str | None]:
    """Return the rows of training steps, and why others cannot be read."""
    path = folder / LOG
    if not os.path.lexists(path):
        return [], None
    try:
        # an interrupted run leaves an incomplete last line
        lines, _, _ = read_text(path, fix=_FIX).rpartition("\n")
    except UserError as error:
        return [], str(error)
    rows, damaged = [], []
    for number, line in enumerate(lines.split("\n"), start=1):
        try:
            row = json.loads(line)
            if row.get("step") is not None and "loss" in row:
                # a number that is not finite is logged as text, which JSON can hold
                rows.append({key: float(value) for key, value in row.items()} | {"step": int(row["step"])})
        except (ValueError, RecursionError, AttributeError, TypeError, OverflowError):
            damaged.append(number)
    if not damaged:
        return rows, None
    more = f" and {len(damaged) - 1} more" if len(damaged) > 1 else ""
    return rows, f"{path}: line {damaged[0]}{more} cannot be read; {_FIX}"
