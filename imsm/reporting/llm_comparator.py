"""Export a run's answers next to the original's, in the format of PAIR's LLM Comparator.

Format: https://github.com/PAIR-code/llm-comparator (JSON Data Format). Model A is the original, model B the run. A
positive score means that A is better, in the tool's range of -1.5 to 1.5.
"""

from typing import Any

import pandas

from imsm.reporting.paired_comparison import outcomes_by_example
from imsm.reporting.runs import ComparedRun
from imsm.utils.errors import UserError

_SCALE = 1.5
_FIELDS = {
    "id": "string",
    "gold": "text",
    "change": "category",
    "role": "category",
    "score": "per_model_number",
    "tokens": "per_model_number",
    "reference_loglik": "per_model_number",
    "gate_mean": "number",
}
"""Type of each custom field."""


def llm_comparator(run: ComparedRun, original: ComparedRun) -> dict[str, Any]:
    """Return the JSON values: one example per prediction of each task, tagged with the task.

    Custom fields: the example's ``id``, accepted answers (``gold``), ``change`` (kept, forgotten, learned or
    never_known) and ``role`` of the task; of both models the headline metric's ``score`` (0 to 1), the number of
    ``tokens`` and ``reference_loglik``; and for a run with a gate its ``gate_mean``, the mean weight of the original.

    Raises:
        UserError: Predictions of a task are missing, damaged or of other examples than the original's.
    """
    examples = [example for task in run.result["evaluation"]["tasks"] for example in _examples(run, original, task)]
    empty = {"gate_mean"} if all(each["custom_fields"]["gate_mean"] is None for each in examples) else set()
    for example in examples:
        example["custom_fields"] = {key: each for key, each in example["custom_fields"].items() if key not in empty}
    return {
        "metadata": {
            "source_path": str(run.result["name"]),
            "custom_fields_schema": [
                {"name": name, "type": kind} for name, kind in _FIELDS.items() if name not in empty
            ],
        },
        "models": [{"name": original.label}, {"name": run.label}],
        "examples": examples,
    }


def _examples(run: ComparedRun, original: ComparedRun, task: str) -> list[dict[str, Any]]:
    entry = run.task_result(task)
    metric = entry["headline"]
    changes = outcomes_by_example(run, original, task=task, metric=metric)
    after, before = run.predictions(task), original.predictions(task)
    if changes is None or after is None or before is None:
        problem = run.load_error(task) or original.load_error(task)
        raise UserError(
            problem
            or f"{run.folder}: its examples of {task} are not the original's; evaluate the run again "
            "(the same command with mode=evaluate)"
        )
    rows = zip(before.loc[after.index].to_dict("records"), after.to_dict("records"), strict=True)
    return [
        _example(name, task, pair, metric=metric, change=change, role=entry["role"])
        for (name, change), pair in zip(changes.items(), rows, strict=True)
    ]


def _example(
    name: Any, task: str, pair: tuple[dict[Any, Any], dict[Any, Any]], *, metric: str, change: str, role: str
) -> dict[str, Any]:
    before, after = pair
    scores = [float(row[f"score.{metric}"]) for row in pair]
    return {
        "input_text": after["prompt"],
        "tags": [task],
        "output_text_a": before["response"],
        "output_text_b": after["response"],
        "score": _SCALE * (scores[0] - scores[1]),
        "individual_rater_scores": [],
        "custom_fields": {
            "id": str(name),
            "gold": " | ".join(after["references"]),
            "change": change,
            "role": role,
            "score": scores,
            "tokens": [int(row["tokens"]) for row in pair],
            "reference_loglik": [_number(row["reference_loglik"]) for row in pair],
            "gate_mean": _number(after["gate_mean"]),
        },
    }


def _number(value: Any) -> float | None:
    return None if value is None or pandas.isna(value) else float(value)
