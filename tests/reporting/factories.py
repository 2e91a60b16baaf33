"""Write finished runs with random scores; no model is run."""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy

from imsm.evaluation.predictions import FILE, task_dir, write_predictions
from imsm.evaluation.result import write_result

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
        write_predictions(
            task_dir(folder, task=task, test_set=entry["test_set"]),
            (
                {
                    "id": f"{task}/{number}",
                    "group": f"{task}/{number // 2}",
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
