"""The shipped tasks, from their yaml files."""

from __future__ import annotations

from typing import Any

import yaml

from imsm.data.task import Task
from tests.helpers.paths import ROOT

CONF = ROOT / "conf"


def task_values(name: str) -> dict[str, Any]:
    values = yaml.safe_load((CONF / "data" / f"{name}.yaml").read_text())
    assert isinstance(values, dict)
    return values


def task_facts(name: str) -> dict[str, Any]:
    facts = yaml.safe_load((CONF / "data" / f"{name}.yaml").read_text())["stats"]
    assert isinstance(facts, dict)
    return facts


def shipped_task(name: str) -> Task:
    return Task(**task_values(name))


def shipped_names() -> list[str]:
    return sorted(path.stem for path in (CONF / "data").glob("*.yaml"))
