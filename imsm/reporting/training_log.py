"""What was measured over the steps of a run's training, read from its log."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas

LOG = "log.jsonl"


def read_curves(folder: Path) -> pandas.DataFrame:
    """A row per step: step, loss, gate_mean and what else was logged; empty without a log."""
    import pandas

    rows = []
    try:
        lines = (folder / LOG).read_text(encoding="utf-8").split("\n")
    except OSError:
        lines = []
    for line in lines:
        try:
            row = json.loads(line)
        except ValueError:
            continue  # the end of a log that was cut
        if isinstance(row, dict) and row.get("step") is not None and "loss" in row:
            rows.append(row)
    table = pandas.DataFrame(rows)
    if table.empty:
        return table
    return table.drop_duplicates("step", keep="last").sort_values("step").reset_index(drop=True)
