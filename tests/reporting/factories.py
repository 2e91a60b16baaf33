"""Write finished runs with random scores; no model is run."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy

from imsm.config.identity import run_name
from imsm.config.schema import RunConfig
from imsm.evaluation.predictions import FILE, task_dir, write_predictions
from imsm.evaluation.result import write_result
from imsm.reporting.render.document import Report, Section
from imsm.reporting.report_data import ReportData, build_report_data
from imsm.reporting.runs import ComparisonSet, build_comparison_set, with_labels
from imsm.reporting.sections.order import build_sections
from tests.helpers.config import result

TASKS = {"gsm8k": 0.1, "webq": 0.9, "freebaseqa": 0.8, "multirc": 0.5, "mrpc": 0.5}
N = 60
HOSTILE = '<script>alert("x")</script> | a|b'


def scores_of(record: dict[str, Any], seed: int) -> dict[str, numpy.ndarray]:
    rng = numpy.random.default_rng(seed)
    shift = {"original": 0.0, "peft": -0.25, "imsm": -0.1, "baseline": -0.15}[record["method"]]
    return {
        task: (rng.random(N) < known + (0.5 if task == "gsm8k" and shift else shift)).astype(float)
        for task, known in TASKS.items()
    }


def write_run(
    folder: Path, record: dict[str, Any], seed: int, *, others: Collection[str] = ()
) -> dict[str, numpy.ndarray]:
    """Write a run's predictions and set its scores; ``others`` names tasks with other test examples."""
    scores = scores_of(record, seed)
    gated = record["method"] == "imsm"
    for task, values in scores.items():
        entry = record["evaluation"]["tasks"][task]
        test_set = f"{'other' if task in others else ''}{task:x<8}"[:8] + "0"
        entry |= {"test_set": test_set, "num_examples": N, "reference_loglik": -1.5}
        entry["metrics"] = dict.fromkeys(entry["metrics"], 100 * float(values.mean()))
        entry["protocols"] = {"strict": {"metrics": entry["metrics"]}}
        yes_or_no = task in ("multirc", "mrpc")
        entry["predictions_sha256"] = write_predictions(
            task_dir(folder, task=task, test_set=entry["test_set"]),
            (
                {
                    "id": f"{task}/{number}",
                    "group": f"{task}/{number // 2}",
                    "prompt": f"Question {number}: {HOSTILE}",
                    "prompt_hash": "0",
                    "response": HOSTILE,
                    "tokens": 2,
                    "ended": True,
                    "answer": "yes" if value else "no",
                    "references": ["yes"] if yes_or_no else ["paris"],
                    "scores": dict.fromkeys(entry["metrics"], value),
                    "reference_loglik": -1.5,
                    "reference_tokens": 1,
                    "gate_mean": 0.4 + 0.1 * value if gated else None,
                    "gate_per_token": [0.4, 0.4 + 0.2 * value] if gated else None,
                    "token_texts": [HOSTILE, "\n"] if gated else None,
                }
                for number, value in enumerate(values)
            ),
        )
    return scores


def evaluate_on_other_examples(runs: dict[str, Any], tasks: Collection[str]) -> None:
    """Evaluate the IMSM run again, on other examples of some tasks than the other runs."""
    folder, record, _ = runs["imsm"]
    original_folder, original, _ = runs["original"]
    before = json.loads(json.dumps(original))
    write_run(original_folder, before, 20, others=tasks)
    scores = write_run(folder, record, 21, others=tasks)
    record["evaluation"]["original"] = before["evaluation"]["tasks"]
    record["evaluation"]["settings"]["limit_by_task"] = dict.fromkeys(tasks, N)
    write_result(folder, record)
    runs["imsm"] = (folder, record, scores)


def predictions_file(run: tuple[Path, dict[str, Any], Any], task: str) -> Path:
    """The predictions of a run on a task."""
    folder, record, _ = run
    test_set = record["evaluation"]["tasks"][task]["test_set"]
    return task_dir(folder, task=task, test_set=test_set) / FILE


def write_runs(root: Path) -> dict[str, Any]:
    """Write an original, a PEFT and an IMSM run, two baselines and a training log.

    Returns folder, result and scores by method, and the root as "root".
    """
    found: dict[str, Any] = {"root": root}
    for seed, method in enumerate(("original", "peft", "imsm")):
        record = result(method)
        record["name"] = run_name(RunConfig.from_dict(record["config"]))
        folder = root / record["name"]
        found[method] = (folder, record, write_run(folder, record, seed))
        if method != "original":
            record["evaluation"]["original"] = found["original"][1]["evaluation"]["tasks"]
        write_result(folder, record)
    folder, record, _ = found["imsm"]
    for value in (0.25, 0.75):
        settings = {"name": "logit_mix", "value": value}
        baseline = json.loads(json.dumps(record)) | {"method": "baseline", "name": f"mix-{value}"}
        baseline["config"]["baseline"] = baseline["identity"]["baseline"] = settings
        baseline_folder = folder / "baselines" / f"logit_mix-{value:.2f}"
        write_run(baseline_folder, baseline, 10 + round(4 * value))
        write_result(baseline_folder, baseline)
    steps = [{"step": n, "loss": 5.0 / n, "gate_mean": 0.5 - 0.01 * n} for n in range(1, 9)]
    (folder / "log.jsonl").write_text("".join(json.dumps(step) + "\n" for step in steps))
    return found


def write_seed(runs: dict[str, Any], method: str, *overrides: str, seed: int, others: Collection[str] = ()) -> Path:
    """Write a run that differs from the run of its method in the seed and the overrides."""
    record = result(method, f"seed={seed}", *overrides)
    folder = runs["root"] / "-".join([method, "seed", str(seed), *overrides])
    write_run(folder, record, 30 + seed, others=others)
    record["evaluation"]["original"] = runs["original"][1]["evaluation"]["tasks"]
    write_result(folder, record)
    return folder


def report_data(runs: dict[str, Any]) -> tuple[ComparisonSet, ReportData]:
    """The comparison set and the data of the IMSM run's report."""
    folder, record, _ = runs["imsm"]
    found = build_comparison_set(folder, record, runs_root=runs["root"])
    return found, build_report_data(found.runs, found.baselines, found.seeds)


def section(data: ReportData, name: str) -> Section:
    """A section of a report."""
    return next(each for each in build_sections(data) if each.name == name)


def cell(found: Section, column: str, **where: str) -> str:
    """The one cell of a column in the row with these cells."""
    assert found.table is not None
    rows = [dict(zip(found.table.columns, row, strict=True)) for row in found.table.rows]
    (row,) = [row for row in rows if all(row[name] == value for name, value in where.items())]
    return row[column]


def three_results(*overrides: str) -> list[dict[str, Any]]:
    """The results of an original, a PEFT and an IMSM run, without predictions."""
    points = {"original": 50.0, "peft": 42.3, "imsm": 47.8}
    return [result(method, *overrides, points=value) for method, value in points.items()]


def data_of(results: Sequence[dict[str, Any]]) -> ReportData:
    """The report data of results without predictions."""
    return build_report_data(with_labels([(record, Path("nowhere")) for record in results]))


def report_of(*overrides: str) -> Report:
    """A report on three results without predictions."""
    sections = build_sections(data_of(three_results(*overrides)))
    return Report(title="run", subtitle="mini", excluded=[], load_errors=[], sections=sections, provenance=[])
