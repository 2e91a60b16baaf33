"""What a finished sequence found, from its stages' results: `sequence.json`.

format, name, method, sequence, runs            which runs, the first stage first
identity                                        of the last stage
tasks [{name, metric, items, test_set, stage}]  columns; stage: where it is learned, null: nowhere
scores                                          rows: the original, then a row per stage; points
measures {BWT, FM, OP, FWT, DG: {value, low, high}}; intervals only where the items are there
forgetting {task: {value, low, high}}           FM of each task but the last one
"""

from __future__ import annotations

import json
import warnings
import zlib
from collections.abc import Collection, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from imsm.config.identity import baseline_config, run_name
from imsm.config.schema import RunConfig
from imsm.evaluation.metrics import aggregate, metric_module
from imsm.evaluation.predictions import read_predictions
from imsm.evaluation.result import read_result
from imsm.evaluation.statistics.bootstrap import Statistic, resample_scores
from imsm.evaluation.statistics.continual import all_measures, forgetting
from imsm.reporting.score_table import comparable, headline
from imsm.utils.errors import UserError
from imsm.utils.files import write_atomic

if TYPE_CHECKING:
    import pandas

FORMAT = 1
FILE = "sequence.json"
LEVEL = 0.95
_RESAMPLES = 1000
_SEED = 0


def build_record(
    folder: Path, *, only: Collection[str] | None = None
) -> tuple[dict[str, Any], NDArray[np.float64] | None]:
    """The record of the sequence whose last stage lies in ``folder``.

    Args:
        folder: of the last stage.
        only: the tasks that count; None: all that it was judged on.

    Returns:
        The record, and resampled scores (N, S+1, tasks), the same draws for every arm; None where
        a stage's items are not there.

    Raises:
        UserError: it is no stage of a sequence, or a stage before it is not finished.
    """
    stages = _stages(folder)
    last = stages[-1][1]
    sequence = [*last["config"]["previous_stage"]["tasks"], last["config"]["data"]["name"]]
    entries = last["evaluation"]["tasks"]
    if lacking := [name for name in sequence if name not in entries]:
        raise UserError(
            f"{folder}: was not asked {', '.join(lacking)} when it was judged last; give the whole sequence again"
        )
    names = [*sequence, *(name for name in entries if name not in sequence)]
    rows = [_original(last), *(result for _, result in stages)]
    tasks = [_column(name, entries[name], sequence) for name in names if only is None or name in only]
    scores = [[_score(result, task, beside=last) for task in tasks] for result in rows]
    folders = [folder.parent / _original_name(last), *(place for place, _ in stages)]
    whole = [place for place in range(len(tasks)) if all(row[place] is not None for row in scores)]
    compared = [[row[place] for place in whole] for row in scores]
    drawn = None
    measured: dict[str, Any] = {"measures": {}, "forgetting": {}}
    if whole[: len(sequence)] == list(range(len(sequence))):
        drawn = _drawn(folders, [tasks[place] for place in whole], compared, last)
        measured = _measured(sequence, compared, drawn)
    record = {
        "format": FORMAT,
        "name": folder.name,
        "method": last["method"],
        "task_sequence": sequence,
        "runs": [place.name for place, _ in stages],
        "identity": last["identity"],
        "tasks": tasks,
        "scores": scores,
        **measured,
    }
    return record, drawn


def write_record(folder: Path, record: Mapping[str, Any]) -> None:
    """Keep a record in the last stage's folder, whole or not at all."""
    write_atomic(folder / FILE, json.dumps(record, indent=2, ensure_ascii=False) + "\n")


def read_record(folder: Path) -> dict[str, Any] | None:
    """The record in a run's folder; None if there is none that can be read."""
    try:
        record = json.loads((folder / FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    good = isinstance(record, dict) and record.get("format") == FORMAT
    return record if good else None


def interval(values: NDArray[np.float64] | None) -> dict[str, float]:
    """The percentile interval of resampled values; nothing without them."""
    if values is None:
        return {}
    low, high = np.quantile(values, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return {"low": float(low), "high": float(high)}


def _stages(folder: Path) -> list[tuple[Path, dict[str, Any]]]:
    """The folders and results of a sequence's stages, the first stage first."""
    found = [(folder, read_result(folder))]
    if "previous_stage" not in found[0][1]["config"]:
        raise UserError(
            f"{folder}: is no later stage of a sequence; give the folder of a sequence's last "
            "stage, which the run names at its end"
        )
    while (after := found[0][1]["config"].get("previous_stage")) is not None:
        place = folder.parent / after["run"]
        found.insert(0, (place, read_result(place)))
    return found


def _column(name: str, entry: Mapping[str, Any], sequence: Sequence[str]) -> dict[str, Any]:
    """A task, by what has to be equal for two scores to be comparable."""
    return {
        "name": name,
        "metric": headline(entry),
        "items": entry["num_examples"],
        "test_set": entry["test_set"],
        "stage": sequence.index(name) + 1 if name in sequence else None,
    }


def _original(last: Mapping[str, Any]) -> dict[str, Any]:
    """The original's scores on the same items, as the last stage keeps them."""
    return {"evaluation": {"tasks": last["evaluation"]["original"]}}


def _original_name(last: Mapping[str, Any]) -> str:
    return run_name(baseline_config(RunConfig.from_dict(last["config"])))


def _score(result: Mapping[str, Any], task: Mapping[str, Any], *, beside: Mapping[str, Any]) -> float | None:
    """A stage's score, if it answered the same items under the same protocol."""
    name = task["name"]
    if not comparable(result, beside, name):
        return None
    entry, other = result["evaluation"]["tasks"][name], beside["evaluation"]["tasks"][name]
    if entry.get("protocol") != other.get("protocol"):
        return None
    found = entry["metrics"].get(task["metric"])
    return None if found is None else float(found)


def _measured(
    sequence: Sequence[str], scores: Sequence[Sequence[float | None]], drawn: NDArray[np.float64] | None
) -> dict[str, Any]:
    """Every measure with its interval."""
    size = len(sequence)
    matrix = np.array(scores, float)
    spread = {} if drawn is None else all_measures(drawn, learned=size)
    each = forgetting(matrix[:, :size])
    each_spread = None if drawn is None else forgetting(drawn[..., :size])
    return {
        "measures": {
            name: {"value": float(value), **interval(spread.get(name))}
            for name, value in all_measures(matrix, learned=size).items()
        },
        "forgetting": {
            name: {"value": float(each[place]), **interval(None if each_spread is None else each_spread[:, place])}
            for place, name in enumerate(sequence[:-1])
        },
    }


def _drawn(
    folders: Sequence[Path],
    tasks: Sequence[Mapping[str, Any]],
    scores: Sequence[Sequence[float | None]],
    last: Mapping[str, Any],
) -> NDArray[np.float64] | None:
    """Resampled scores (N, S+1, tasks); equal draws whatever the arm."""
    columns = []
    for place, task in enumerate(tasks):
        try:
            frames = [read_predictions(folder, task=task["name"], test_set=task["test_set"]) for folder in folders]
        except UserError:
            return None
        statistic = _statistic(frames, task, [row[place] for row in scores], last)
        if statistic is None:
            return None
        generator = np.random.default_rng([_SEED, zlib.crc32(task["test_set"].encode())])
        columns.append(resample_scores(frames, statistic, resamples=_RESAMPLES, generator=generator))
    return np.stack(columns, axis=-1)


def _statistic(
    frames: Sequence[pandas.DataFrame],
    task: Mapping[str, Any],
    scores: Sequence[float | None],
    last: Mapping[str, Any],
) -> Statistic | str | None:
    """What gives the recorded scores from the items: a column's mean, else the metric itself."""
    column = f"score.{task['metric']}"
    if None in scores or any(column not in frame for frame in frames):
        return None
    if all(_close(100 * f[column].mean(), s) for f, s in zip(frames, scores, strict=True)):
        return column
    module = metric_module(last["config"]["metrics"].get(task["metric"], task["metric"]))
    statistic = partial(_aggregated, module)
    if all(_close(statistic(f), s) for f, s in zip(frames, scores, strict=True)):
        return statistic
    return None


def _aggregated(module: Any, rows: pandas.DataFrame) -> float:
    with warnings.catch_warnings():  # scikit-learn's, of a draw with one label alone
        warnings.simplefilter("ignore", UserWarning)
        value = aggregate(module, rows["answer"].tolist(), rows["references"].tolist())
    return float(module.INFO.scale) * value


def _close(one: float, other: float | None) -> bool:
    return other is not None and abs(one - other) < 1e-6
