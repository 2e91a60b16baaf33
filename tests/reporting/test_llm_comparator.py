"""Export for LLM Comparator: the documented format, and values of the predictions."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any, Literal

import pytest
from pydantic import BaseModel, ConfigDict, Field

from imsm.reporting.llm_comparator import llm_comparator
from imsm.reporting.paired_comparison import compute_retention
from imsm.reporting.runs import ComparedRun, runs_to_compare
from imsm.utils.errors import UserError
from tests.reporting.factories import TASKS, N, predictions_file


class Strict(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")


class CustomField(Strict):
    name: str
    type: Literal[
        *("number", "string", "category", "text", "url", "image_path", "image_byte", "per_model_boolean"),
        *("per_model_number", "per_model_category", "per_model_text", "per_rating_string"),
    ]


class Metadata(Strict):
    source_path: str
    custom_fields_schema: list[CustomField]


class Model(Strict):
    name: str


class Example(Strict):
    input_text: str
    tags: list[str]
    output_text_a: str
    output_text_b: str
    score: float = Field(ge=-1.5, le=1.5)
    individual_rater_scores: list[Any] = Field(max_length=0)
    custom_fields: dict[str, Any]


class Comparison(Strict):
    """The format in the README and `client/lib/types.ts` of PAIR-code/llm-comparator."""

    metadata: Metadata
    models: list[Model] = Field(min_length=2, max_length=2)
    examples: list[Example]


TYPES: dict[str, Any] = {"string": str, "text": str, "category": str, "number": float, "per_model_number": list}


def pair(runs: dict[str, Any], method: str) -> tuple[ComparedRun, ComparedRun]:
    folder, record, _ = runs[method]
    original, *_, run = runs_to_compare(folder, record, runs_root=folder.parent, siblings=False)
    return run, original


@pytest.mark.parametrize("method", ["peft", "imsm"])
def test_format_is_the_documented_one(shared_runs: dict[str, Any], method: str) -> None:
    values = llm_comparator(*pair(shared_runs, method))
    comparison = Comparison.model_validate_json(json.dumps(values, allow_nan=False))
    assert [model.name for model in comparison.models] == ["original", method]
    assert len(comparison.examples) == N * len(TASKS)
    fields = {field.name: field.type for field in comparison.metadata.custom_fields_schema}
    # the page reads every field of every example, and both items of a value per model
    for example in comparison.examples:
        assert example.custom_fields.keys() == fields.keys()
        for name, kind in fields.items():
            value = example.custom_fields[name]
            assert isinstance(value, TYPES[kind]) and (kind != "per_model_number" or len(value) == 2)
    assert ("gate_mean" in fields) is (method == "imsm")


def test_scores_and_changes_are_those_of_the_report(shared_runs: dict[str, Any]) -> None:
    run, original = pair(shared_runs, "imsm")
    examples = llm_comparator(run, original)["examples"]
    for task in TASKS:
        own = [example for example in examples if example["tags"] == [task]]
        metric = run.task_result(task)["headline"]
        found = compute_retention(run, original, task=task, metric=metric)
        assert found is not None
        counts = Counter(example["custom_fields"]["change"] for example in own)
        assert {name: counts[name] for name in vars(found.counts)} == vars(found.counts)
        before, after = shared_runs["original"][2][task], shared_runs["imsm"][2][task]
        # positive: model A, the original, is better
        assert [example["score"] for example in own] == pytest.approx(list(1.5 * (before - after)))
        assert [example["custom_fields"]["score"] for example in own] == [
            list(each) for each in zip(before, after, strict=True)
        ]
        predictions = run.predictions(task)
        assert predictions is not None
        assert [example["output_text_b"] for example in own] == list(predictions["response"])
        assert [example["custom_fields"]["gate_mean"] for example in own] == list(predictions["gate_mean"])
        assert [example["custom_fields"]["id"] for example in own] == list(predictions.index)


def test_changed_predictions_are_refused(runs: dict[str, Any]) -> None:
    path = predictions_file(runs["peft"], "mrpc")
    path.write_text(path.read_text() + " ")
    with pytest.raises(UserError, match="changed since its result was written"):
        llm_comparator(*pair(runs, "peft"))
