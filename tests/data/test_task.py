"""Every shipped task has a module and metrics, and opens with a record of its dataset."""

from __future__ import annotations

import ast
import importlib
import re

import pytest
import yaml

from imsm.data.task import Task, task_module
from imsm.evaluation.metrics import resolve_metric
from imsm.utils.errors import UserError
from tests.data.shipped import CONF, shipped_names, shipped_task, task_values


def test_all_tasks_are_shipped() -> None:
    assert shipped_names() == sorted(
        ["cola", "freebaseqa", "gsm8k", "jsonl", "mrpc", "multirc", "multirc_answers", "ropes", "webq"]
    )


@pytest.mark.parametrize("name", shipped_names())
def test_yaml_names_its_module_and_metrics(name: str) -> None:
    task = shipped_task(name)
    assert task.name == name
    module = task_module(task)
    assert module.extract("") == ""
    for metric in task.metrics:
        values = yaml.safe_load((CONF / "metric" / f"{metric}.yaml").read_text())
        assert resolve_metric(values["module"]).INFO.name == metric


@pytest.mark.parametrize("name", [name for name in shipped_names() if name != "jsonl"])
def test_task_file_opens_with_a_record_of_its_dataset(name: str) -> None:
    module = importlib.import_module(f"imsm.data.tasks.{name}")
    assert module.__doc__ is not None
    found = re.search(r"^\{.*?\}$", module.__doc__.replace("...,", ""), re.DOTALL | re.MULTILINE)
    assert found is not None
    record = ast.literal_eval(found.group())
    assert len(list(module.examples([record], split="test", prompt_style="paper"))) == 1


def test_module_that_is_not_there_or_is_no_task() -> None:
    with pytest.raises(UserError, match=r"data\.module=my_missing_task"):
        task_module(Task(**{**task_values("mrpc"), "module": "my_missing_task"}))
    with pytest.raises(UserError, match="has no examples and no extract"):
        task_module(Task(**{**task_values("mrpc"), "module": "imsm.data.tasks"}))
