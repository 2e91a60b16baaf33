"""Finished runs of a table with random scores."""

from __future__ import annotations

from typing import Any

import numpy

from imsm.config.identity import baseline_config, run_identity, run_name
from imsm.evaluation.predictions import task_dir, write_predictions
from imsm.evaluation.result import build_result, write_result
from imsm.studies.paper.runs import RunIndex, RunRef

N = 50


def write_run(run: RunRef, runs: RunIndex, *, known: float, seed: int) -> dict[str, numpy.ndarray]:
    """Write a finished run and its original with random scores; return the scores by task."""
    config = runs.config(run.overrides)
    rng = numpy.random.default_rng(seed)
    original = run_name(baseline_config(config))
    entries: dict[str, Any] = {}
    scores = {}
    for name, task in config.tasks.items():
        fingerprint = f"{name:x<8}"[:8]
        values = (rng.random(N) < known).astype(float)
        scores[name] = values
        metrics = dict.fromkeys(task.metrics, 100 * float(values.mean()))
        entries[name] = {
            "role": "target" if name == config.data.name else "forgetting",
            "trained_on": name == config.data.name,
            "test_set": fingerprint,
            "num_examples": N,
            "metrics": metrics,
            "headline": task.metrics[0],
            "protocol": "strict",
            "protocols": {"strict": {"metrics": metrics}},
            "seconds": 1.0,
            "new_tokens": N,
            "unparsed": 0,
            "truncated": 0,
        }
        for folder in (run.folder, runs.runs_root / original):
            entries[name]["predictions_sha256"] = write_predictions(
                task_dir(folder, task=name, test_set=fingerprint),
                (
                    {
                        "id": str(number),
                        "group": str(number),
                        "prompt": "Question: x?",
                        "prompt_hash": "0",
                        "response": "x",
                        "tokens": 1,
                        "ended": True,
                        "answer": "yes" if value else "no",
                        "references": ["yes"],
                        "scores": dict.fromkeys(task.metrics, value),
                        "reference_loglik": -1.0,
                        "reference_tokens": 1,
                        "gate_mean": None,
                        "gate_per_token": None,
                        "token_texts": None,
                    }
                    for number, value in enumerate(values)
                ),
            )
    result = build_result(
        name=run.name,
        method=config.method.name,
        config=config.to_dict(),
        identity=run_identity(config),
        fingerprints={"backbone": "f"},
        machine={"device": "cpu"},
        trainable_parameters={"adapter": 1_500_000, "gate": 0},
        training={"seconds": 1.0},
        evaluation={
            "settings": config.evaluation.model_dump(),
            "tasks": entries,
            "original": {name: {**e, "trained_on": False} for name, e in entries.items()},
        },
    )
    write_result(run.folder, result)
    return scores
