"""Groups that torchrun or srun started: who is in them, and how they end."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from imsm.distributed import rendezvous as join
from imsm.distributed.context import DistributedContext
from imsm.distributed.rendezvous import (
    RendezvousInfo,
    detect_process_group,
    first_host,
    join_process_group,
    run_in_group,
)
from imsm.utils.errors import RunError, UserError

TORCHRUN = {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "MASTER_ADDR": "node1", "MASTER_PORT": "29500"}
SRUN = {
    "SLURM_PROCID": "9",
    "SLURM_LOCALID": "1",
    "SLURM_STEP_NUM_TASKS": "16",
    "SLURM_STEP_NODELIST": "gpu[07-08]",
    "SLURM_JOB_ID": "4711",
    "SLURM_STEP_ID": "0",
}


@pytest.fixture(autouse=True)
def no_scontrol(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(join.shutil, "which", lambda name: None)


def test_torchrun() -> None:
    group = RendezvousInfo(rank=5, size=8, local_rank=1, address="node1", port=29500)
    assert detect_process_group(TORCHRUN) == group
    alone = detect_process_group(TORCHRUN | {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"})
    assert alone is not None and alone.size == 1


def test_srun() -> None:
    group = detect_process_group(SRUN)
    assert group is not None
    assert (group.rank, group.size, group.local_rank, group.address) == (9, 16, 1, "gpu07")
    assert 12000 <= group.port < 32000
    assert detect_process_group(SRUN | {"SLURM_PROCID": "0", "SLURM_LOCALID": "0"}).port == group.port
    assert detect_process_group(SRUN | {"SLURM_JOB_ID": "4712"}).port != group.port
    chosen = detect_process_group(SRUN | {"MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "7000"})
    assert (chosen.address, chosen.port) == ("10.0.0.1", 7000)


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"RANK": "0", "WORLD_SIZE": "1"},  # left over from something else
        {"SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NTASKS": "16"},  # the batch script
        SRUN | {"SLURM_STEP_NUM_TASKS": "1"},
    ],
)
def test_alone(environment: dict[str, str]) -> None:
    assert detect_process_group(environment) is None


def test_an_environment_that_makes_no_sense() -> None:
    with pytest.raises(UserError, match="WORLD_SIZE=two: must be a whole number"):
        detect_process_group(TORCHRUN | {"WORLD_SIZE": "two"})
    with pytest.raises(UserError, match="SLURM_STEP_NODELIST: is not set"):
        detect_process_group({key: text for key, text in SRUN.items() if key != "SLURM_STEP_NODELIST"})


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("node1", "node1"),
        ("node[01-04]", "node01"),
        ("node[3,7-9],other", "node3"),
        ("a,b[1-2]", "a"),
        ("rack2-gpu[10-12].local", "rack2-gpu10.local"),
    ],
)
def test_the_first_host(nodes: str, first: str) -> None:
    assert first_host(nodes) == first


def test_scontrol_is_asked_where_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "scontrol"
    program.write_text('#!/bin/sh\necho "of-$3"\necho second\n')
    program.chmod(0o755)
    monkeypatch.setattr(join.shutil, "which", lambda name: str(program))
    assert first_host("x[1-2]") == "of-x[1-2]"


def test_more_processes_than_gpus() -> None:
    group = RendezvousInfo(rank=3, size=4, local_rank=3, address="node1", port=1)
    with pytest.raises(UserError, match="process 3 of 4: is number 4 on its machine, where 2 GPUs"):
        join_process_group(group, gpus=2)


@pytest.fixture
def pair(monkeypatch: pytest.MonkeyPatch) -> Callable[[], DistributedContext]:
    """Make processes of a group of two, in one, each with its own count of runs."""
    from torch.distributed import HashStore

    store = HashStore()
    ends = [0, 0]
    monkeypatch.setattr(join, "_FAREWELL", 0.3)

    def process(rank: int) -> DistributedContext:
        ends[rank] += 1
        monkeypatch.setattr(join, "_ends", ends[rank] - 1)
        return DistributedContext(rank=rank, size=2, store=store)

    return process


def fail(error: BaseException | None) -> Callable[[], None]:
    def task() -> None:
        if error is not None:
            raise error

    return task


class LeftError(BaseException):
    """In place of the end of this process."""


def leaves(monkeypatch: pytest.MonkeyPatch) -> None:
    def leave(code: int) -> None:
        raise LeftError(code)

    monkeypatch.setattr(join.os, "_exit", leave)


def test_an_error_of_all_ends_one_run_only(pair, monkeypatch, capfd) -> None:
    leaves(monkeypatch)
    bad = UserError("data=x: is bad")
    with pytest.raises(LeftError):  # the other one is not there yet
        run_in_group(pair(0), fail(bad))
    assert "imsm: data=x: is bad" in capfd.readouterr().err
    with pytest.raises(UserError, match="is bad"):
        run_in_group(pair(1), fail(bad))
    assert capfd.readouterr().err == ""
    run_in_group(pair(1), fail(None))  # the sweep's next member
    run_in_group(pair(0), fail(None))


def test_an_error_of_one_ends_its_process(pair, monkeypatch, capfd) -> None:
    leaves(monkeypatch)
    with pytest.raises(LeftError, match="1"):
        run_in_group(pair(1), fail(RunError("no space")))
    assert capfd.readouterr().err == "imsm: process 1 of 2: no space\n"
    run_in_group(pair(0), fail(None))
    with pytest.raises(LeftError, match="1"):
        run_in_group(pair(1), fail(ValueError("a mistake")))
    told = capfd.readouterr().err
    assert told.startswith("process 1 of 2: Traceback")
    assert "ValueError: a mistake" in told


def heard(folder: Path) -> list[str]:
    return [(folder / f"heard-{rank}.json").read_text() for rank in (0, 1)]


EXPECTED = [f'[["I am 0", "I am 1"], 7, 2, {rank}]' for rank in (0, 1)]


@pytest.mark.slow
def test_processes_of_torchrun_meet(tmp_path: Path) -> None:
    file = tmp_path / "run.json"
    file.write_text(json.dumps({"folder": str(tmp_path), "do": "talk", "device": "cpu"}))
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command = [*torchrun, "--nproc-per-node", "2", "-m", "tests.distributed.programs.meeting", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert heard(tmp_path) == EXPECTED


@pytest.mark.slow
def test_processes_of_srun_meet_and_one_speaks(tmp_path: Path) -> None:
    """The first process holds the store; it must not go before the other one has read it."""
    for do in ("talk", "refuse"):
        file = tmp_path / f"{do}.json"
        file.write_text(json.dumps({"folder": str(tmp_path), "do": do, "device": "cpu"}))
        own = {"SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_NODELIST": "localhost"}
        own["SLURM_JOB_ID"] = str(os.getpid())
        processes = [
            subprocess.Popen(
                [sys.executable, "-m", "tests.distributed.programs.meeting", str(file)],
                env={**os.environ, **own, "SLURM_PROCID": rank, "SLURM_LOCALID": rank},
                stderr=subprocess.PIPE,
                text=True,
            )
            for rank in ("0", "1")
        ]
        told = [process.communicate(timeout=120)[1] for process in processes]
        codes = [process.returncode for process in processes]
        if do == "talk":
            assert (codes, told) == ([0, 0], ["", ""])
        else:
            assert (codes, told) == ([2, 2], ["imsm: data=x: is bad\n", ""])
    assert heard(tmp_path) == EXPECTED
