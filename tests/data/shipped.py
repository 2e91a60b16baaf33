"""The tasks that the repository ships, as their yamls describe them."""

from __future__ import annotations

from pathlib import Path

import yaml

from imsm.data.task import Task, build_task

CONF = Path(__file__).parents[2] / "conf"


def shipped_task(name: str) -> Task:
    return build_task(yaml.safe_load((CONF / "data" / f"{name}.yaml").read_text()))


def shipped_names() -> list[str]:
    return sorted(path.stem for path in (CONF / "data").glob("*.yaml"))
