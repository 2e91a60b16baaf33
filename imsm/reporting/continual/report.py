"""Write the tables and the heat map of a finished task sequence."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from imsm.config.identity import comparable_up_to_method
from imsm.evaluation.statistics.continual import all_measures
from imsm.reporting.continual.heatmap import draw_heatmap
from imsm.reporting.continual.record import FILE, build_record, percentile_bounds, read_record, write_record
from imsm.reporting.continual.render import render_markdown, render_terminal, score_frame
from imsm.reporting.render.escaping import csv_cell
from imsm.utils.control_characters import escape_controls
from imsm.utils.errors import UserError
from imsm.utils.files import write_atomic

_METHOD_ORDER = {"peft": 0, "imsm": 1}
Built = tuple[dict[str, Any], NDArray[np.float64] | None]
"""A record and its resampled scores."""


def write_sequence_report(*folders: Path) -> None:
    """Write sequence.json, .csv, .md and .png, and print the tables.

    ``folders`` are those of the sequences' last stages; the files are written into the last one. With one folder,
    comparable sequences of the other methods in the same parent folder are included.

    Raises:
        UserError: A folder has no finished sequence, or the sequences are not comparable.
    """
    own = Path(folders[-1]).absolute()
    built = build_record(own)
    record = built[0]
    # before the others are read: the record is of all tasks, not of the common ones
    write_record(own, record)
    given = [Path(folder).absolute() for folder in folders[:-1]]
    others = {folder: build_record(folder) for folder in given} or _sequences_of_other_methods(own, record)
    sequences: list[Built] = [built, *others.values()]
    common = _common_tasks([found for found, _ in sequences])
    # the measures average over tasks, so that they are comparable over the same tasks only
    for index, folder in enumerate([own, *others]):
        if len(sequences[index][0]["tasks"]) > len(common):
            sequences[index] = build_record(folder, only=common)
    sequences.sort(key=lambda pair: _METHOD_ORDER.get(pair[0]["method"], len(_METHOD_ORDER)))
    records = [found for found, _ in sequences]
    differences = _differences_from_peft(sequences)
    draw_heatmap(records, own / "sequence.png")
    scores = score_frame(record).rename(index=csv_cell, columns=csv_cell)
    write_atomic(own / "sequence.csv", scores.to_csv(float_format="%.6g"))
    write_atomic(own / "sequence.md", render_markdown(records, differences))
    render_terminal(records, differences)
    print(f"sequence: {own / 'sequence.md'} (also sequence.json, .csv, .png)")


def _sequences_of_other_methods(folder: Path, record: dict[str, Any]) -> dict[Path, Built]:
    """Return the newest comparable sequence of each other method; those that cannot be read are named."""
    found: dict[str, tuple[Path, Built]] = {}
    files = sorted(folder.parent.glob(f"*/{FILE}"), key=lambda path: path.stat().st_mtime, reverse=True)
    learned = [task for task in record["tasks"] if task["stage"] is not None]
    for other in (file.parent for file in files if file.parent != folder):
        try:
            saved = read_record(other)
            if saved["method"] in (record["method"], *found):
                continue
            comparable = comparable_up_to_method(record["identity"], saved["identity"])
            if comparable and all(task in saved["tasks"] for task in learned):
                found[saved["method"]] = other, build_record(other)
        except UserError as error:
            print(escape_controls(f"left out: {error}"), file=sys.stderr)
    return dict(found.values())


def _common_tasks(records: Sequence[dict[str, Any]]) -> set[str]:
    """Return the tasks that all sequences evaluated on the same examples and metric.

    Raises:
        UserError: The sequences learned different tasks, or share not all learned tasks.
    """
    first = records[0]
    names = {str(task["name"]) for task in first["tasks"] if all(task in record["tasks"] for record in records)}
    for record in records[1:]:
        if record["task_sequence"] != first["task_sequence"] or not names >= set(first["task_sequence"]):
            raise UserError(
                f"{record['name']}: is not comparable with {first['name']} (other tasks or test examples); give "
                "folders of one task sequence, evaluated on the same examples"
            )
    return names


def _differences_from_peft(sequences: Sequence[Built]) -> dict[str, dict[str, float]]:
    """Return each measure of the last method minus PEFT's, with its interval."""
    found = {record["method"]: (record, resampled) for record, resampled in sequences}
    names = [name for name in found if name != "peft"]
    if "peft" not in found or not names:
        return {}
    (record, resampled), (peft, peft_resampled) = found[names[-1]], found["peft"]
    if not record["measures"] or not peft["measures"]:
        return {}
    spread: dict[str, NDArray[np.float64]] = {}
    if resampled is not None and peft_resampled is not None:
        count = len(record["task_sequence"])
        # row i of both was resampled with the same draws: the difference is paired
        one, other = (all_measures(values, learned=count) for values in (resampled, peft_resampled))
        spread = {name: one[name] - other[name] for name in one}
    return {
        name: {"value": entry["value"] - peft["measures"][name]["value"], **percentile_bounds(spread.get(name))}
        for name, entry in record["measures"].items()
    }
