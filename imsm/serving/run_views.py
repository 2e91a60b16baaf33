"""JSON views of served runs: report cards, and evaluated examples with the answers of all runs on them.

Numbers are those of the report (`imsm.reporting`): scores in points, outcomes by `outcomes_by_example`.
"""

from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from statistics import fmean
from typing import Any

import pandas

from imsm.evaluation.result import FILE, read_result
from imsm.evaluation.statistics.forgetting import OUTCOMES, stability
from imsm.reporting.paired_comparison import outcomes_by_example
from imsm.reporting.render.formatting import backbone_label
from imsm.reporting.report import report_subtitle, report_title
from imsm.reporting.report_data import ReportData, build_report_data
from imsm.reporting.runs import ComparedRun, comparable, headline, runs_to_compare
from imsm.reporting.sections.headline import build_headline
from imsm.reporting.sections.settings import build_settings
from imsm.utils.errors import UserError
from imsm.utils.paths import runs_root

MAX_ITEMS = 200
"""Largest number of examples in one answer of `list_items`."""


def list_runs(folders: Sequence[Path]) -> list[dict[str, Any]]:
    """Return the report card of each run.

    Keys: ``run``, ``title``, ``subtitle``, ``method``, ``backbone``, ``peft``, ``target``, ``seed``, ``streams``,
    ``headline`` (sentences), ``gate`` (None without one), ``scores`` (one entry per task), ``forgetting`` (means over
    the informative tests), and ``settings`` (names and values).

    Raises:
        UserError: A folder has no finished run, or its result lacks the scores of its original.
    """
    return [dict(_cached_card(folder, _time_of_change(folder))) for folder in folders]


def list_items(
    folder: Path, *, task: str | None, change: str | None, search: str | None, offset: int, limit: int
) -> dict[str, Any]:
    """Return one page of a run's evaluated examples, each with the answers of the runs that share its test set.

    ``task`` and ``change`` (one of `OUTCOMES`) select; ``search`` is found in prompts, accepted answers and responses,
    ignoring case. At most `MAX_ITEMS` examples are returned.

    Returns:
        ``total``: number of selected examples; ``changes``: their number by outcome before ``change`` selects;
        ``tasks``: names; ``items``: ``id``, ``task``, ``metric``, ``prompt``, ``references``, ``change`` (None
        without the original's predictions) and ``answers``, the original's first and the run's last.

    Raises:
        UserError: The run is not finished, or an argument has no such value.
    """
    runs = _load_runs(folder)
    tasks = list(runs[-1].result["evaluation"]["tasks"])
    for key, value, valid in (("task", task, tasks), ("change", change, OUTCOMES)):
        if value is not None and value not in valid:
            raise UserError(f"{key}={value[:80]}: no such {key}; choose from {', '.join(valid)}")
    if offset < 0 or limit < 1:
        raise UserError(f"offset={offset}, limit={limit}: must be at least 0 and 1")
    found = _load_examples(folder)
    if task is not None:
        found = found[found["task"] == task]
    if search:
        found = found[found["text"].str.contains(search.casefold(), regex=False)]
    counts = found["change"].value_counts()
    if change is not None:
        found = found[found["change"] == change]
    page = found.iloc[offset : offset + min(limit, MAX_ITEMS)]
    return {
        "run": folder.name,
        "tasks": tasks,
        "total": len(found),
        "offset": offset,
        "limit": min(limit, MAX_ITEMS),
        "changes": {name: int(counts.get(name, 0)) for name in OUTCOMES},
        "items": [_item(runs, row) for row in page.to_dict("records")],
    }


@lru_cache(maxsize=32)
def _cached_card(folder: Path, time: int) -> dict[str, Any]:
    runs = _cached_runs(folder, time)
    # without the other runs: a card is about its run, and the intervals of the others take time
    data = build_report_data(runs if len(runs) == 1 else [runs[0], runs[-1]])
    result, config = data.focus.result, data.focus.result["config"]
    stream = str(config["method"]["stream"])
    settings = build_settings(data).table
    gate = config["gate"] if stream == "interwoven" else None
    return {
        "run": folder.name,
        "title": report_title(data),
        "subtitle": report_subtitle(result, compared=len(data.runs) > 1),
        "method": data.focus.method,
        "backbone": backbone_label(config),
        "peft": config["peft"]["name"],
        "target": data.target,
        "seed": config["seed"],
        "streams": ["original", "tuned", "interwoven"][: {"original": 1, "tuned": 2}.get(stream, 3)],
        "headline": build_headline(data),
        "gate": None if gate is None else {"name": gate.get("name"), "rank": gate.get("rank")},
        "scores": list(_scores(data)),
        "forgetting": _forgetting(data),
        "settings": [] if settings is None else settings.rows,
    }


def _scores(data: ReportData) -> Iterator[dict[str, Any]]:
    """Yield each task's scores before and after, and its outcomes."""
    retentions = {found.task: found for found in data.retentions if found.run == data.focus.label}
    for task in data.tasks:
        entry, found = data.focus.task_result(task), retentions.get(task)
        before = data.mean(data.runs[0], [task]) if len(data.runs) > 1 else None
        yield {
            "task": task,
            "role": entry["role"],
            "metric": data.metrics[task],
            "examples": entry["num_examples"],
            "trained_on": bool(entry.get("trained_on")),
            "at_chance": task in data.at_chance,
            "original": before,
            "score": data.mean(data.focus, [task]),
            "gate": entry.get("gate_mean"),
            "changes": None if found is None else {name: getattr(found.counts, name) for name in OUTCOMES},
            "retained": None if found is None or task == data.target else found.retained,
        }


def _forgetting(data: ReportData) -> dict[str, Any] | None:
    """Return the means over the tests on which the original is above chance; None without such a test."""
    tests = data.informative
    if len(data.runs) < 2 or not tests:
        return None
    retained = {found.task: found.retained for found in data.retentions if found.run == data.focus.label}
    gates = [gate for task in tests if (gate := data.focus.task_result(task).get("gate_mean")) is not None]
    return {
        "tests": tests,
        "original": data.mean(data.runs[0], tests),
        "score": data.mean(data.focus, tests),
        "retained": stability({task: retained.get(task) for task in tests}),
        "gate": fmean(gates) if gates else None,
    }


def _load_runs(folder: Path) -> list[ComparedRun]:
    """Return the original, other runs on the same test set, and the run; loaded again when its result changes."""
    return _cached_runs(folder, _time_of_change(folder))


def _load_examples(folder: Path) -> pandas.DataFrame:
    """Return the run's examples with their outcomes and the text to search, in the order of the evaluation."""
    return _cached_examples(folder, _time_of_change(folder))


def _time_of_change(folder: Path) -> int:
    try:
        return (folder / FILE).stat().st_mtime_ns
    except OSError as error:
        raise UserError(f"{folder / FILE}: cannot be read ({error.strerror}); run the same command again") from error


@lru_cache(maxsize=32)
def _cached_runs(folder: Path, _time: int) -> list[ComparedRun]:
    result = read_result(folder)
    found = runs_to_compare(folder, result, runs_root=folder.parent)
    # the original of a run with a custom run_dir is under the runs root, not next to the run
    if not found[0].folder.is_dir():
        found = runs_to_compare(folder, result, runs_root=runs_root())
    return found


@lru_cache(maxsize=32)
def _cached_examples(folder: Path, time: int) -> pandas.DataFrame:
    runs = _cached_runs(folder, time)
    run, tables = runs[-1], []
    for task, entry in run.result["evaluation"]["tasks"].items():
        own = run.predictions(task)
        if own is None:
            continue
        metric = headline(entry)
        change = outcomes_by_example(run, runs[0], task=task, metric=metric) if len(runs) > 1 else None
        table = own[["prompt", "references"]].assign(task=task, metric=metric, change=change)
        texts = [own["prompt"], own["references"].map("\n".join)]
        texts += [answers["response"].reindex(own.index, fill_value="") for answers in _answers(runs, task).values()]
        table["text"] = pandas.concat(texts, axis=1).agg("\n".join, axis=1).str.casefold()
        tables.append(table.rename_axis("id").reset_index())
    columns = ["id", "task", "metric", "prompt", "references", "change", "text"]
    return pandas.concat(tables, ignore_index=True) if tables else pandas.DataFrame(columns=columns, dtype=object)


def _answers(runs: Sequence[ComparedRun], task: str) -> dict[str, pandas.DataFrame]:
    """Return the predictions of the runs with the test set of the last, by label."""
    found = {run.label: run.predictions(task) for run in runs if comparable(runs[-1].result, run.result, task)}
    return {label: predictions for label, predictions in found.items() if predictions is not None}


def _item(runs: Sequence[ComparedRun], row: Mapping[str, Any]) -> dict[str, Any]:
    answers = []
    for label, predictions in _answers(runs, row["task"]).items():
        if row["id"] not in predictions.index:
            continue
        found = predictions.loc[row["id"]]
        answers.append(
            {
                "label": label,
                "response": found["response"],
                "answer": found["answer"],
                "score": _number(found.get(f"score.{row['metric']}")),
                "gate": _number(found["gate_mean"]),
            }
        )
    known = isinstance(row["change"], str)
    return {
        **{key: row[key] for key in ("id", "task", "metric", "prompt", "references")},
        "change": row["change"] if known else None,
        "answers": answers,
    }


def _number(value: Any) -> float | None:
    return None if value is None or pandas.isna(value) else float(value)
