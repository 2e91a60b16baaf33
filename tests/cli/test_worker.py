"""What a worker reads is the very run that was composed."""

from __future__ import annotations

import json
import sys
import types
from pathlib import Path
from typing import Any

import pytest

from imsm.cli import worker
from imsm.distributed.context import DistributedContext
from imsm.pipeline import start as starting
from tests.helpers.config import config


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Where a launch would be, its arguments are kept."""
    kept: list[dict[str, Any]] = []

    def launch(settings: dict[str, Any], **how: Any) -> None:
        kept.append({"settings": json.loads(json.dumps(settings)), **how})

    monkeypatch.setattr("imsm.distributed.launcher.launch", launch)
    monkeypatch.setattr(starting, "detect_process_group", lambda: None)
    return kept


def test_a_saved_configuration_is_the_run(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, launched: list[dict[str, Any]]
) -> None:
    choices = ("engine=zero2", "engine.nproc_per_node=2", "engine.device=cpu", "peft=loramoe_blc_replay")
    asked = config(*choices, "data=mrpc", config_dir=tmp_path)
    starting.start_run(asked, runs_root=tmp_path / "runs")
    (how,) = launched
    assert how["processes"] == 2
    assert how["folder"].parent == tmp_path / "runs"

    seen: list[Any] = []
    flow = types.ModuleType("imsm.pipeline.run")
    flow.carry_out = lambda config, **rest: seen.extend([config, rest])  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "imsm.pipeline.run", flow)
    monkeypatch.setattr(sys, "name_or_path", list(sys.path))
    dist_context = DistributedContext()
    worker.run_from_file(how["settings"], dist_context)
    assert seen == [asked, {"runs_root": tmp_path / "runs", "world": dist_context}]
    assert seen[0].replay_tasks and seen[0].metrics
    assert sys.path[0] == str(tmp_path)


def test_one_process_needs_no_launcher(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, launched: list[dict[str, Any]]
) -> None:
    seen: list[Any] = []
    flow = types.ModuleType("imsm.pipeline.run")
    flow.carry_out = lambda config, **rest: seen.append(rest)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "imsm.pipeline.run", flow)
    monkeypatch.setattr(starting, "visible_gpus", lambda: 0)
    starting.start_run(config(), runs_root=tmp_path)
    assert (seen, launched) == ([{"runs_root": tmp_path}], [])


def test_deepspeed_is_missed_before_anything_starts(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, launched: list[dict[str, Any]]
) -> None:
    asked = config("engine=zero2", "engine.device=cpu")
    monkeypatch.setattr(starting.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(starting.UserError) as error:
        starting.start_run(asked, runs_root=tmp_path)
    assert str(error.value) == ("engine=zero2: needs DeepSpeed: pip install -c constraints.txt -e '.[deepspeed]'")
    assert launched == []


def test_several_gpus_are_looked_at_first(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, launched: list[dict[str, Any]]
) -> None:
    looked: list[dict[str, Any]] = []
    monkeypatch.setattr(starting, "visible_gpus", lambda: 8)
    monkeypatch.setattr(starting, "check_gpus_free", lambda **how: looked.append(how))
    starting.start_run(config("engine=auto"), runs_root=tmp_path)
    assert looked == [{"processes": 8, "engine": "auto"}]
    assert launched[0]["processes"] == 8
    assert launched[0]["settings"]["device"] == "cuda"
