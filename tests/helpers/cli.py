"""Run `imsm run` in this process, with a stand-in for the experiment."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import pytest

from imsm.cli.main import main


def imsm_run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    """Return the exit code of `imsm run`."""
    monkeypatch.setattr(sys, "argv", list(sys.argv))
    monkeypatch.setattr(sys, "path", list(sys.path))
    return main(["run", *arguments])


def replace_experiment(monkeypatch: pytest.MonkeyPatch, function: Callable[[Any], None]) -> None:
    """Call ``function`` with the RunConfig instead of training."""
    monkeypatch.setattr("imsm.pipeline.sweeps.job.run_experiment", lambda config, **_: function(config))
