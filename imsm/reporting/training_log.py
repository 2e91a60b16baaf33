"""Read a run's training log."""

import json
from pathlib import Path

import pandas

LOG = "log.jsonl"


def read_training_log(folder: Path) -> pandas.DataFrame:
    """Return one row per step with step, loss, gate_mean, etc.; empty without a log."""
    rows = []
    try:
        lines = (folder / LOG).read_text(encoding="utf-8").split("\n")
    except OSError:
        lines = []
    for line in lines:
        try:
            row = json.loads(line)
        except ValueError:
            # an interrupted run leaves an incomplete last line
            continue
        if isinstance(row, dict) and row.get("step") is not None and "loss" in row:
            rows.append(row)
    table = pandas.DataFrame(rows)
    if table.empty:
        return table
    # a resumed run logs the steps since its checkpoint again
    return table.drop_duplicates("step", keep="last").sort_values("step").reset_index(drop=True)
