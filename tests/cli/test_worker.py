"""The entry point of a worker process."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from imsm.cli import worker
from imsm.distributed.context import DistributedContext
from tests.helpers.config import config


def test_a_worker_runs_the_saved_configuration(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    overrides = ("engine=zero2", "engine.nproc_per_node=2", "engine.device=cpu", "peft=loramoe_blc_replay")
    expected = config(*overrides, "data=mrpc", config_dir=tmp_path)
    saved = {"config": expected.to_dict(), "runs_root": str(tmp_path / "runs"), "command": "c"}
    settings = json.loads(json.dumps(saved))
    calls: list[Any] = []
    monkeypatch.setattr("imsm.pipeline.run.run_experiment", lambda config, **rest: calls.extend([config, rest]))
    monkeypatch.setattr(sys, "path", list(sys.path))
    dist_context = DistributedContext()
    options = worker.parser().parse_args(["run.json", "--config-dir", str(tmp_path)])
    worker.run_from_file(settings, dist_context, options=options)
    assert calls == [expected, {"runs_root": tmp_path / "runs", "dist_context": dist_context, "command": "c"}]
    assert calls[0].replay_tasks and calls[0].metrics
    assert sys.path[0] == str(tmp_path)
