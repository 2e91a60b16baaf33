"""A finished sequence's tables and heat map: `imsm continual FOLDER [FOLDER ...]`.

FOLDER is the folder of a sequence's last stage; a run with `task_sequence=[...]` does the same at its
end. With one folder, the other methods' sequences beside it that differ in nothing else are shown
too. Written into the last folder given: `sequence.json` `.md` `.csv` `.png`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from imsm.utils.errors import UserError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_ORDER = {"peft": 0, "imsm": 1}


def write_sequence_report(*folders: Path) -> None:
    """Print what sequences found, side by side, and write it into the last one's folder.

    Args:
        folders: of the sequences' last stages; one alone brings its siblings.

    Raises:
        UserError: one is no finished sequence, or they learned different tasks in a row.
    """
    from imsm.reporting.continual.heatmap import draw
    from imsm.reporting.continual.record import build_record, write_record
    from imsm.reporting.continual.render import render_markdown, render_terminal, score_frame
    from imsm.utils.files import write_atomic

    own = Path(folders[-1]).absolute()
    record, drawn = build_record(own)
    write_record(own, record)
    others = [Path(folder).absolute() for folder in folders[:-1]] or _siblings(own, record)
    arms = [(record, drawn), *(build_record(other) for other in others)]
    common = _common_tasks([arm for arm, _ in arms])
    for place, folder in enumerate([own, *others]):
        if len(arms[place][0]["tasks"]) > len(common):
            arms[place] = build_record(folder, only=common)
    arms.sort(key=lambda arm: _ORDER.get(arm[0]["method"], len(_ORDER)))
    records = [arm for arm, _ in arms]
    differences = _differences(arms)
    draw(records, own / "sequence.png")
    write_atomic(own / "sequence.csv", score_frame(record).to_csv(float_format="%.6g"))
    write_atomic(own / "sequence.md", render_markdown(records, differences))
    render_terminal(records, differences)
    print(f"sequence: {own / 'sequence.md'}, with its heat map in sequence.png")


def _siblings(folder: Path, record: dict[str, Any]) -> list[Path]:
    """The other methods' sequences under the same root, the newest of each, on the same items."""
    from imsm.config.identity import comparable_up_to_method
    from imsm.reporting.continual.record import FILE, read_record

    found: dict[str, Path] = {}
    files = sorted(folder.parent.glob(f"*/{FILE}"), key=lambda path: path.stat().st_mtime)
    for file in files:
        other = read_record(file.parent)
        if other is None or file.parent == folder or other["method"] == record["method"]:
            continue
        alike = comparable_up_to_method(record["identity"], other["identity"])
        learned = [task for task in record["tasks"] if task["stage"] is not None]
        if alike and all(task in other["tasks"] for task in learned):
            found[other["method"]] = file.parent
    return list(found.values())


def _common_tasks(records: Sequence[dict[str, Any]]) -> set[str]:
    """The tasks that all arms were judged on, by the same items and metric.

    Raises:
        UserError: they learned different tasks in a row, or one of these is not common.
    """
    first = records[0]
    common = [task for task in first["tasks"] if all(task in r["tasks"] for r in records)]
    names = {str(task["name"]) for task in common}
    for record in records[1:]:
        if record["task_sequence"] != first["task_sequence"] or not names >= set(first["task_sequence"]):
            raise UserError(
                f"{record['name']}: is not to be compared with {first['name']}, which learned or "
                "was asked something else; give folders of one sequence, judged on the same items"
            )
    return names


def _differences(arms: Sequence[tuple[dict[str, Any], NDArray[np.float64] | None]]) -> dict[str, dict[str, float]]:
    """Each measure of the last arm less PEFT's, with its interval on the same draws."""
    from imsm.evaluation.statistics.continual import all_measures
    from imsm.reporting.continual.record import interval

    found = {record["method"]: (record, drawn) for record, drawn in arms}
    names = [name for name in found if name != "peft"]
    if "peft" not in found or not names:
        return {}
    (record, drawn), (peft, peft_drawn) = found[names[-1]], found["peft"]
    if not record["measures"] or not peft["measures"]:
        return {}
    spread: dict[str, NDArray[np.float64]] = {}
    if drawn is not None and peft_drawn is not None:
        size = len(record["task_sequence"])
        one, other = (all_measures(values, learned=size) for values in (drawn, peft_drawn))
        spread = {name: one[name] - other[name] for name in one}
    return {
        name: {"value": entry["value"] - peft["measures"][name]["value"], **interval(spread.get(name))}
        for name, entry in record["measures"].items()
    }
