"""Tables of predictions: one row per example, or one row per method and task."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas

from imsm.config.identity import identity_without_seed
from imsm.evaluation.result import read_result, result_error
from imsm.evaluation.statistics.intervals import Interval, seed_ci
from imsm.reporting.render.table import Table
from imsm.reporting.runs import BASELINE, ComparedRun, baselines_of, runs_to_compare
from imsm.utils.control_characters import escape_controls
from imsm.utils.errors import UserError
from imsm.utils.hashing import hash_text
from imsm.utils.paths import runs_root

_KEYS = ["run", "method", "seed", "configuration", "task", "test_set"]
_MEANS = ("unparsed", "truncated", "tokens", "reference_loglik", "gate_mean")
_DIGITS = {name: 1 for name in ("score", "ci_low", "ci_high", "lowest", "highest", "tokens", "unparsed", "truncated")}
_DIGITS |= {"reference_loglik": 2, "gate_mean": 3}


def prediction_table(folders: Sequence[Path]) -> pandas.DataFrame:
    """Return every prediction of finished runs, their originals and their baselines.

    What runs share (the original's predictions on one test set) is included once. Originals and baselines whose
    files changed since they were evaluated are left out, with a line on standard error.

    Returns:
        One row per prediction: ``run`` (name of the folder), ``method``, ``seed`` (missing for the
        original), ``configuration`` (equal for runs that differ only in the seed), ``task``,
        ``test_set`` (hash), ``id``, the columns of `imsm.evaluation.predictions.read_predictions`,
        ``metric`` (the task's headline metric), and ``score`` under that metric.

    Raises:
        UserError: A folder has no finished run, or its predictions are missing or changed.
    """
    found: dict[tuple[Path, str, str], pandas.DataFrame] = {}
    left_out: dict[str, None] = {}
    for folder in folders:
        for run in _runs(folder):
            for task, entry in run.result["evaluation"]["tasks"].items():
                key = (run.folder, task, entry["test_set"])
                if key in found:
                    continue
                try:
                    found[key] = _predictions(run, task)
                except UserError as error:
                    if run.folder == folder:
                        raise
                    left_out[str(error)] = None
        for path in sorted(folder.glob("baselines/*")):
            if problem := result_error(path):
                left_out[problem] = None
    for line in left_out:
        print(escape_controls(f"left out: {line}"), file=sys.stderr)
    # nullable integers: the original has no seed, and floats would print seed 0 as 0.0
    return pandas.concat(found.values(), ignore_index=True).astype({"seed": "Int64"})


def summarize_predictions(predictions: pandas.DataFrame) -> pandas.DataFrame:
    """Return one row for each method and task of `prediction_table`.

    Returns:
        ``examples``: their number; ``score``: mean score in points (also for F1 and Matthews'
        correlation, which are not means elsewhere); ``unparsed``: answers that could not be
        extracted; ``truncated``: responses that reached the token limit; ``tokens``: mean response
        length; ``reference_loglik``: mean of ln p of the most likely accepted answer;
        ``gate_mean``: mean weight of the original's hidden state.
    """
    marked = predictions.assign(
        unparsed=[not str(answer).strip() for answer in predictions["answer"]],
        truncated=~predictions["ended"].astype(bool),
        score=100 * predictions["score"],
    )
    # dropna: pandas would otherwise drop the original, which has no seed
    groups = marked.groupby([*_KEYS, "metric"], sort=False, dropna=False)
    return groups.agg(
        examples=("id", "size"),
        score=("score", "mean"),
        unparsed=("unparsed", "sum"),
        truncated=("truncated", "sum"),
        tokens=("tokens", "mean"),
        reference_loglik=("reference_loglik", "mean"),
        gate_mean=("gate_mean", "mean"),
    ).reset_index()


def average_over_seeds(predictions: pandas.DataFrame) -> pandas.DataFrame:
    """Average `prediction_table` over runs that differ only in the seed.

    Returns:
        ``run``: the first of the runs; ``seeds``: their number; ``score``: mean score in points, with
        its 95 % interval over seeds and examples (``ci_low``, ``ci_high``) and the ``lowest`` and
        ``highest`` score of a seed; the other columns are means over seeds.
    """
    keys = ["configuration", "method", "task", "test_set", "metric"]
    means = (
        summarize_predictions(predictions)
        .groupby([*keys, "examples"], sort=False)
        .agg(
            run=("run", "first"),
            seeds=("score", "size"),
            score=("score", "mean"),
            lowest=("score", "min"),
            highest=("score", "max"),
            **{name: (name, "mean") for name in _MEANS},
        )
        .reset_index()
    )
    groups = predictions.groupby(keys, sort=False)
    intervals = [_interval(groups.get_group(tuple(row))) for row in means[keys].itertuples(index=False)]
    position = means.columns.get_loc("lowest")
    means.insert(position, "ci_low", [100 * interval.low for interval in intervals])
    means.insert(position + 1, "ci_high", [100 * interval.high for interval in intervals])
    return means.drop(columns="configuration").set_index("run").reset_index()


def compare_by_example(predictions: pandas.DataFrame) -> pandas.DataFrame:
    """Return one row per example of `prediction_table`.

    Returns:
        ``task``, ``test_set``, ``id``, ``metric``, ``prompt``, ``references`` (joined by " | "), then
        ``response``, ``answer`` and ``score`` of each run, e.g. ``peft: response``; empty for a run without
        the example. Runs of one method have their folder's name in the column, e.g. ``peft (RUN): score``.
    """
    keys = ["task", "test_set", "id", "metric"]
    runs = predictions[["run", "method"]].drop_duplicates()
    ambiguous = set(runs["method"][runs["method"].duplicated()])
    labels = [f"{method} ({run})" if method in ambiguous else method for run, method in runs.itertuples(index=False)]
    examples = predictions.drop_duplicates(keys).set_index(keys)
    texts = [" | ".join(accepted) for accepted in examples["references"]]
    table = examples[["prompt"]].assign(references=texts)
    for label, (run, method) in zip(labels, runs.itertuples(index=False), strict=True):
        own = predictions[(predictions["run"] == run) & (predictions["method"] == method)].set_index(keys)
        for column in ("response", "answer", "score"):
            table[f"{label}: {column}"] = own[column]
    return table.reset_index()


def _interval(predictions: pandas.DataFrame) -> Interval:
    """Return the interval of the mean score over the seeds."""
    scores = predictions.pivot(index="id", columns="run", values="score")
    groups = predictions.drop_duplicates("id").set_index("id")["group"].reindex(scores.index)
    return seed_ci([scores[run].to_numpy() for run in scores], groups=list(groups))


def as_table(frame: pandas.DataFrame) -> Table:
    """Return a summary as rounded text; a missing value is empty."""
    rows = [[_cell(name, value) for name, value in row.items()] for row in frame.to_dict("records")]
    columns = [str(name) for name in frame.columns]
    return Table(columns=columns, rows=rows, text_columns=columns.index("metric") + 1)


def _cell(name: Any, value: Any) -> str:
    if pandas.isna(value):
        return ""
    rounded = name in _DIGITS and not isinstance(value, int)
    return f"{value:.{_DIGITS[name]}f}" if rounded else str(value)


def _runs(folder: Path) -> list[ComparedRun]:
    """Return the original, the run and its baselines.

    The original of a run with a custom ``run_dir`` is under the runs root, not next to the run.
    """
    result = read_result(folder)
    runs = runs_to_compare(folder, result, runs_root=folder.parent, siblings=False)
    if not runs[0].folder.is_dir():
        runs = runs_to_compare(folder, result, runs_root=runs_root(), siblings=False)
    return [*runs, *baselines_of(folder)]


def _predictions(run: ComparedRun, task: str) -> pandas.DataFrame:
    found = run.predictions(task)
    if found is None:
        raise UserError(run.load_error(task) or f"{run.folder}: has no predictions of {task}")
    entry, identity = run.task_result(task), run.result["identity"]
    metric, table = entry["headline"], found.reset_index()
    # a baseline belongs to its run: RUN/baselines/NAME
    folder = run.folder.parent.parent if run.method == BASELINE else run.folder
    seed = None if run.method == "original" else identity.get("seed")
    # equal for everything that trains the same model, baselines of it included
    trained = identity_without_seed({key: value for key, value in identity.items() if key != "baseline"})
    configuration = hash_text(json.dumps(trained, sort_keys=True))[:8]
    values = [folder.name, run.label, seed, configuration, task, str(entry["test_set"])[:8]]
    for position, (name, value) in enumerate(zip(_KEYS, values, strict=True)):
        table.insert(position, name, value)
    return table.assign(metric=metric, score=table[f"score.{metric}"])
