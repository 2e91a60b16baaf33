"""The record of a finished task sequence, `sequence.json`.

format, name, method, task_sequence, runs       the runs, first stage first
identity                                        of the last stage
tasks [{name, metric, num_examples, test_set, stage}]  stage: where the task is learned, or null
scores                                          rows: the original, then each stage; in points
measures {BWT, FM, OP, FWT, DG: {value, low, high}}; intervals only if predictions exist
forgetting {task: {value, low, high}}           FM of each task except the last
sha256                                          of all of the above
"""

import shlex
import sys
import warnings
import zlib
from collections.abc import Collection, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas
from numpy.typing import NDArray

from imsm.config.identity import original_run
from imsm.evaluation.metrics import aggregate, resolve_metric
from imsm.evaluation.predictions import read_predictions
from imsm.evaluation.result import read_result
from imsm.evaluation.statistics.bootstrap import Statistic, resample_scores
from imsm.evaluation.statistics.continual import all_measures, forgetting
from imsm.reporting.runs import comparable, headline
from imsm.utils.control_characters import escape_controls
from imsm.utils.errors import UserError
from imsm.utils.json_files import read_hashed_json, write_hashed_json

FORMAT = 2
FILE = "sequence.json"
LEVEL = 0.95
_RESAMPLES = 1000
_SEED = 0

Record = Mapping[str, Any]


def build_record(
    folder: Path, *, only: Collection[str] | None = None
) -> tuple[dict[str, Any], NDArray[np.float64] | None]:
    """Build the record of the sequence whose last stage is in ``folder``, with all tasks or ``only`` some.

    Returns:
        The record, and resampled scores (N, S+1, tasks) that use the same draws for every method;
        None if predictions of a stage are missing.

    Raises:
        UserError: The folder is not a later stage of a sequence, or an earlier stage is unfinished.
    """
    stages = _stages(folder)
    last = stages[-1][1]
    sequence = [*last["config"]["previous_stage"]["tasks"], last["config"]["data"]["name"]]
    entries = last["evaluation"]["tasks"]
    if missing := [name for name in sequence if name not in entries]:
        raise UserError(
            f"{folder}: {', '.join(missing)} is missing from the last evaluation; run the complete sequence again"
        )
    names = [*sequence, *(name for name in entries if name not in sequence)]
    tasks = [_task(name, entries[name], sequence) for name in names if only is None or name in only]
    # the last stage re-evaluates the original on every task; earlier stages may lack some
    original = {"evaluation": {"tasks": last["evaluation"]["original"]}}
    results = [original, *(result for _, result in stages)]
    scores = [[_score(result, task, last=last) for task in tasks] for result in results]
    folders = [folder.parent / original_run(last["config"])[0], *(path for path, _ in stages)]
    # measures compare columns over all stages, so a task counts only if every stage has its score
    complete = [index for index in range(len(tasks)) if all(row[index] is not None for row in scores)]
    resampled = None
    measures: dict[str, Any] = {"measures": {}, "forgetting": {}}
    if complete[: len(sequence)] == list(range(len(sequence))):
        compared = [[row[index] for index in complete] for row in scores]
        sources = list(zip(folders, results, strict=True))
        resampled = _resampled_scores(sources, [tasks[index] for index in complete], compared, last)
        measures = _measures(sequence, compared, resampled)
    record = {
        "format": FORMAT,
        "name": folder.name,
        "method": last["method"],
        "task_sequence": sequence,
        "runs": [path.name for path, _ in stages],
        "identity": last["identity"],
        "tasks": tasks,
        "scores": scores,
        **measures,
    }
    return record, resampled


def write_record(folder: Path, record: Record) -> None:
    """Write a record with its own hash into the last stage's folder, atomically."""
    write_hashed_json(folder / FILE, record)


def read_record(folder: Path) -> dict[str, Any]:
    """Return the record in the folder of a sequence's last stage.

    Raises:
        UserError: The file is missing, damaged, of another format, or was changed since it was written.
    """
    fix = f"write it again with imsm continual {shlex.quote(str(folder))}"
    record = read_hashed_json(folder / FILE, fix=fix)
    if record.get("format") != FORMAT:
        raise UserError(f"{folder / FILE}: is not of format {FORMAT} (another version of imsm); {fix}")
    return record


def percentile_bounds(values: NDArray[np.float64] | None) -> dict[str, float]:
    """Return the percentile interval of resampled values; empty without values."""
    if values is None:
        return {}
    low, high = np.quantile(values, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return {"low": float(low), "high": float(high)}


def _stages(folder: Path) -> list[tuple[Path, dict[str, Any]]]:
    """Return folders and results of a sequence's stages, in order."""
    found = [(folder, read_result(folder))]
    if "previous_stage" not in found[0][1]["config"]:
        raise UserError(
            f"{folder}: is not a later stage of a task sequence; give the folder of its last stage, which the run "
            "prints at its end"
        )
    while (before := found[0][1]["config"].get("previous_stage")) is not None:
        path = folder.parent / before["run"]
        if any(path == stage for stage, _ in found):
            raise UserError(f"{path}: is a previous stage of itself; run the sequence again")
        found.insert(0, (path, read_result(path)))
    return found


def _task(name: str, entry: Mapping[str, Any], sequence: Sequence[str]) -> dict[str, Any]:
    """Return the properties of a task that must be equal for scores to be comparable."""
    return {
        "name": name,
        "metric": headline(entry),
        "num_examples": entry["num_examples"],
        "test_set": entry["test_set"],
        "stage": sequence.index(name) + 1 if name in sequence else None,
    }


def _score(result: Mapping[str, Any], task: Mapping[str, Any], *, last: Mapping[str, Any]) -> float | None:
    """Return a stage's score if it is comparable with the last stage's."""
    if not comparable(result, last, task["name"]):
        return None
    score = result["evaluation"]["tasks"][task["name"]]["metrics"].get(task["metric"])
    return None if score is None else float(score)


def _measures(
    sequence: Sequence[str], scores: Sequence[Sequence[float | None]], resampled: NDArray[np.float64] | None
) -> dict[str, Any]:
    """Return every measure with its interval."""
    count = len(sequence)

    def values(matrix: NDArray[np.float64]) -> tuple[dict[str, Any], dict[str, Any]]:
        per_task = forgetting(matrix[..., :count])
        # the last task cannot be forgotten: no stage follows it
        by_task = {name: per_task[..., index] for index, name in enumerate(sequence[:-1])}
        return dict(all_measures(matrix, learned=count)), by_task

    spreads = ({}, {}) if resampled is None else values(resampled)
    parts = zip(("measures", "forgetting"), values(np.array(scores, float)), spreads, strict=True)
    return {
        part: {name: {"value": float(value), **percentile_bounds(spread.get(name))} for name, value in found.items()}
        for part, found, spread in parts
    }


def _resampled_scores(
    sources: Sequence[tuple[Path, Mapping[str, Any]]],
    tasks: Sequence[Mapping[str, Any]],
    scores: Sequence[Sequence[float | None]],
    last: Mapping[str, Any],
) -> NDArray[np.float64] | None:
    """Return resampled scores (N, S+1, tasks); the draws depend on the test set only."""
    columns = []
    for index, task in enumerate(tasks):
        try:
            frames = [_predictions(folder, result, task) for folder, result in sources]
        except UserError as error:
            print(escape_controls(f"no intervals: {error}"), file=sys.stderr)
            return None
        statistic = _statistic(frames, task, [row[index] for row in scores], last)
        if statistic is None:
            return None
        # seeded by the test set: every method sees the same draws, so that differences are paired
        generator = np.random.default_rng([_SEED, zlib.crc32(task["test_set"].encode())])
        columns.append(resample_scores(frames, statistic, resamples=_RESAMPLES, generator=generator))
    return np.stack(columns, axis=-1)


def _predictions(folder: Path, result: Mapping[str, Any], task: Mapping[str, Any]) -> pandas.DataFrame:
    entry = result["evaluation"]["tasks"][task["name"]]
    return read_predictions(
        folder, task=task["name"], test_set=task["test_set"], sha256=entry.get("predictions_sha256")
    )


def _statistic(
    frames: Sequence[pandas.DataFrame],
    task: Mapping[str, Any],
    scores: Sequence[float | None],
    last: Mapping[str, Any],
) -> Statistic | str | None:
    """Return what reproduces the recorded scores: a column, or the metric."""
    column = f"score.{task['metric']}"
    if None in scores or any(column not in frame for frame in frames):
        return None
    if all(_close(100 * frame[column].mean(), score) for frame, score in zip(frames, scores, strict=True)):
        return column
    # an aggregate such as F1 is not a mean of scores and has to be computed for each draw
    module = resolve_metric(last["config"]["metrics"].get(task["metric"], task["metric"]))
    statistic = partial(_aggregate, module)
    if all(_close(statistic(frame), score) for frame, score in zip(frames, scores, strict=True)):
        return statistic
    return None


def _aggregate(module: Any, rows: pandas.DataFrame) -> float:
    with warnings.catch_warnings():  # scikit-learn warns about draws with a single label
        warnings.simplefilter("ignore", UserWarning)
        value = aggregate(module, rows["answer"].tolist(), rows["references"].tolist())
    return float(module.INFO.scale) * value


def _close(one: float, other: float | None) -> bool:
    # recorded scores are points; a sum in another order differs by rounding only
    return other is not None and abs(one - other) < 1e-6
