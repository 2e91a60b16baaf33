"""Launchers of jobs in other processes; the processes themselves are in tests/integration/test_sweeps.py."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

launchers = pytest.importorskip("imsm.pipeline.sweeps.launchers")

from hydra.core.plugins import Plugins  # noqa: E402
from hydra.plugins.launcher import Launcher  # noqa: E402

from imsm.config.schema import RunConfig  # noqa: E402
from imsm.utils.errors import UserError  # noqa: E402
from tests.helpers.config import config  # noqa: E402


def test_hydra_finds_the_launchers_of_the_plugin_package() -> None:
    names = {cls.__name__ for cls in Plugins.instance().discover(Launcher)}
    assert {"ImsmLocalLauncher", "ImsmSlurmLauncher"} <= names


def test_local_jobs_run_at_once_as_cpus_and_memory_allow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(8)))

    def at_once(cpus: int | None = None, memory: int | None = None, gpus: int = 0) -> int:
        return launchers.jobs_at_once(cpus_per_task=cpus, mem_gb=memory, gpus=gpus)

    assert [at_once(), at_once(cpus=2), at_once(cpus=16), at_once(memory=10**6)] == [2, 4, 1, 1]
    # CPUs limit jobs on GPUs on request only
    assert at_once(gpus=16) == 16
    assert at_once(cpus=4, gpus=16) == 2


class FakeJob:
    """A job that ends when it is polled for the second time."""

    def __init__(self) -> None:
        self.polls, self.cancelled = 0, False

    def done(self) -> bool:
        self.polls += 1
        return self.polls > 1

    def cancel(self) -> None:
        self.cancelled = True


class FakeLauncher:
    """A launcher with the parameters of `conf/sweep/local.yaml`; ``started`` are numbers and GPUs."""

    def __init__(self, **params: Any) -> None:
        self.params = {"cpus_per_task": None, "gpus_per_node": None, "mem_gb": None, **params}
        self.started: list[tuple[int, list[str]]] = []
        self.jobs: list[FakeJob] = []

    def start(self, launcher: Any, number: int, overrides: list[str], gpus: list[str]) -> FakeJob:
        self.started.append((number, gpus))
        self.jobs.append(FakeJob())
        return self.jobs[-1]


@pytest.fixture
def local(monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[list[tuple[int, list[str]]], list[int]]]:
    """Run jobs on GPUs that do not exist; return what started, in order, and what ended."""
    monkeypatch.setattr(launchers, "_POLL_SECONDS", 0.01)

    def run(*configs: RunConfig, gpus: list[str], **params: Any) -> tuple[list[tuple[int, list[str]]], list[int]]:
        launcher = FakeLauncher(**params)
        monkeypatch.setattr(launchers, "free_gpu_names", lambda: gpus)
        monkeypatch.setattr(launchers, "_start_local_job", launcher.start)
        waiting = {number: [] for number in range(len(configs))}
        ended = [number for number, _ in launchers.run_local_jobs(launcher, waiting, dict(enumerate(configs)))]
        return launcher.started, ended

    return run


def test_each_local_job_has_one_gpu_where_it_fits(local, capsys: pytest.CaptureFixture[str]) -> None:
    started, ended = local(*[config(f"seed={n}") for n in range(5)], gpus=["4", "GPU-5f", "MIG-7"])
    assert started[:3] == [(0, ["4"]), (1, ["GPU-5f"]), (2, ["MIG-7"])]
    assert [number for number, _ in started] == [0, 1, 2, 3, 4] and sorted(ended) == [0, 1, 2, 3, 4]
    assert all(len(gpus) == 1 for _, gpus in started)
    assert "5 jobs to run, 3 at once, on 1 of 3 GPUs each" in capsys.readouterr().out


def test_a_local_job_that_needs_all_gpus_waits_for_them(local) -> None:
    large = config("engine=zero2", "engine.nproc_per_node=2")
    started, ended = local(config(), large, config("seed=1"), gpus=["0", "1"])
    assert started[0] == (0, ["0"])
    assert sorted(started[1][1]) == ["0", "1"] and started[1][0] == 1
    assert started[2][0] == 2 and ended == [0, 1, 2]


def test_the_number_of_gpus_can_be_given(local) -> None:
    assert local(config(), config(), gpus=["4", "5", "7"], gpus_per_node=2)[0][0] == (0, ["4", "5"])
    assert [gpus for _, gpus in local(config(), config(), gpus=["4", "5", "7"], gpus_per_node=0)[0]] == [[], []]
    with pytest.raises(UserError, match=r"^hydra\.launcher\.gpus_per_node=2: this machine has 1 visible"):
        local(config(), gpus=["0"], gpus_per_node=2)


def test_a_job_sees_its_gpus_only(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setenv("IMSM_RUNS", "")
    monkeypatch.setattr(launchers.stop_signals, "install", lambda: None)
    launcher = SimpleNamespace(runs_root=tmp_path, task_function=SimpleNamespace(config_dir=None), gpus=["MIG-7", "2"])
    launchers.prepare_job_process(launcher)
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "MIG-7,2"
    # a job of SLURM has the GPUs of its allocation
    del launcher.gpus
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    launchers.prepare_job_process(launcher)
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "0"
