"""Launchers of jobs in other processes; the processes themselves are in tests/integration/test_sweeps.py."""

from __future__ import annotations

import os

import pytest

launchers = pytest.importorskip("imsm.pipeline.sweeps.launchers")

from hydra.core.plugins import Plugins  # noqa: E402
from hydra.plugins.launcher import Launcher  # noqa: E402

from imsm.utils.errors import UserError  # noqa: E402


def test_hydra_finds_the_launchers_of_the_plugin_package() -> None:
    names = {cls.__name__ for cls in Plugins.instance().discover(Launcher)}
    assert {"ImsmLocalLauncher", "ImsmSlurmLauncher"} <= names


def test_local_jobs_run_at_once_as_cpus_gpus_and_memory_allow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(8)))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")

    def slots(cpus: int | None = 2, gpus: int | None = None, memory: int | None = None) -> list[list[int]]:
        return launchers.free_slots(cpus_per_task=cpus, gpus_per_node=gpus, mem_gb=memory)

    assert slots() == [[], [], [], []]
    assert slots(cpus=16) == [[]]
    assert slots(memory=10**6) == [[]]
    with pytest.raises(UserError, match="gpus_per_node=1"):
        slots(gpus=1)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,7")
    assert slots() == [[4], [5], [7]]
    assert slots(gpus=2) == [[4, 5]]
    assert slots(gpus=0) == [[], [], [], []]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "MIG-1")
    with pytest.raises(UserError, match="CUDA_VISIBLE_DEVICES=MIG-1"):
        slots()
