"""Groups started by torchrun or srun: detection, joining, and how they end."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from torch.distributed import HashStore, TCPStore

from imsm.distributed import rendezvous
from imsm.distributed.context import DistributedContext
from imsm.distributed.rendezvous import (
    RendezvousInfo,
    detect_process_group,
    first_host,
    join_process_group,
    listening_store,
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
    monkeypatch.setattr(rendezvous.shutil, "which", lambda name: None)


def test_torchrun_group_is_detected() -> None:
    group = RendezvousInfo(rank=5, world_size=8, local_rank=1, address="node1", port=29500)
    assert detect_process_group(TORCHRUN) == group
    single = detect_process_group(TORCHRUN | {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"})
    assert single is not None and single.world_size == 1


def test_srun_group_is_detected_and_its_port_depends_on_the_job() -> None:
    group = detect_process_group(SRUN)
    assert group is not None
    assert (group.rank, group.world_size, group.local_rank, group.address) == (9, 16, 1, "gpu07")
    assert 12000 <= group.port < 32000
    assert detect_process_group(SRUN | {"SLURM_PROCID": "0", "SLURM_LOCALID": "0"}).port == group.port
    assert detect_process_group(SRUN | {"SLURM_JOB_ID": "4712"}).port != group.port
    given = detect_process_group(SRUN | {"MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "7000"})
    assert (given.address, given.port) == ("10.0.0.1", 7000)


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"RANK": "0", "WORLD_SIZE": "1"},  # left over from something else
        {"SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NTASKS": "16"},  # the batch script
        SRUN | {"SLURM_STEP_NUM_TASKS": "1"},
    ],
)
def test_no_group_is_detected(environment: dict[str, str]) -> None:
    assert detect_process_group(environment) is None


def test_an_incomplete_environment_is_a_user_error() -> None:
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
def test_first_host_of_a_node_list(nodes: str, first: str) -> None:
    assert first_host(nodes) == first


def test_scontrol_is_used_if_available(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "scontrol"
    program.write_text('#!/bin/sh\necho "of-$3"\necho second\n')
    program.chmod(0o755)
    monkeypatch.setattr(rendezvous.shutil, "which", lambda name: str(program))
    assert first_host("x[1-2]") == "of-x[1-2]"


def test_more_processes_than_gpus_is_a_user_error() -> None:
    group = RendezvousInfo(rank=3, world_size=4, local_rank=3, address="node1", port=1)
    with pytest.raises(UserError, match=r"process 3 of 4: .* 2 GPUs are visible"):
        join_process_group(group, num_gpus=2)


Process = Callable[[int], DistributedContext]


@pytest.fixture
def process(monkeypatch: pytest.MonkeyPatch) -> Process:
    """Simulate the processes of a group of two, each with its own count of finished runs."""
    store = HashStore()
    runs_ended = [0, 0]

    def exit_instead(code: int) -> None:
        raise ExitedError(code)

    def context(rank: int) -> DistributedContext:
        monkeypatch.setattr(rendezvous, "_runs_ended", runs_ended[rank])
        runs_ended[rank] += 1
        return DistributedContext(rank=rank, world_size=2, store=store)

    monkeypatch.setattr(rendezvous.os, "_exit", exit_instead)
    return context


class ExitedError(BaseException):
    """Raised in place of ending this process."""


def run(dist_context: DistributedContext, error: BaseException | None = None) -> None:
    def task() -> None:
        if error is not None:
            raise error

    run_in_group(dist_context, task, end_timeout=0.3)


def test_a_shared_error_is_raised_and_the_next_run_works(process: Process, capfd) -> None:
    error = UserError("data=x: is bad")
    with pytest.raises(ExitedError, match="2"):  # the other process has not ended yet
        run(process(0), error)
    assert "imsm: data=x: is bad" in capfd.readouterr().err
    with pytest.raises(UserError, match="is bad"):
        run(process(1), error)
    assert capfd.readouterr().err == ""
    run(process(1))
    run(process(0))


def test_an_error_of_one_process_ends_it(process: Process, capfd) -> None:
    with pytest.raises(ExitedError, match="1"):
        run(process(1), RunError("no space"))
    assert capfd.readouterr().err == "imsm: process 1 of 2: no space\n"
    run(process(0))
    with pytest.raises(ExitedError, match="1"):
        run(process(1), ValueError("a bug"))
    stderr = capfd.readouterr().err
    assert stderr.startswith("process 1 of 2: Traceback")
    assert "ValueError: a bug" in stderr


def received(folder: Path) -> list[str]:
    return [(folder / f"received-{rank}.json").read_text() for rank in (0, 1)]


EXPECTED = [f'[["I am 0", "I am 1"], 7, 2, {rank}]' for rank in (0, 1)]


@pytest.mark.slow
def test_torchrun_processes_communicate(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    path.write_text(json.dumps({"folder": str(tmp_path), "action": "communicate", "device": "cpu"}))
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command = [*torchrun, "--nproc-per-node", "2", "-m", "tests.distributed.programs.meeting", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert received(tmp_path) == EXPECTED


@pytest.mark.slow
def test_srun_processes_communicate_and_only_rank_0_prints(tmp_path: Path) -> None:
    """Rank 0 holds the store, so it must not exit before rank 1 has read it."""
    for action in ("communicate", "reject"):
        path = tmp_path / f"{action}.json"
        path.write_text(json.dumps({"folder": str(tmp_path), "action": action, "device": "cpu"}))
        step = {"SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_NODELIST": "localhost"}
        step["SLURM_JOB_ID"] = str(os.getpid())
        processes = [
            subprocess.Popen(
                [sys.executable, "-m", "tests.distributed.programs.meeting", str(path)],
                env={**os.environ, **step, "SLURM_PROCID": rank, "SLURM_LOCALID": rank},
                stderr=subprocess.PIPE,
                text=True,
            )
            for rank in ("0", "1")
        ]
        stderr = [process.communicate(timeout=120)[1] for process in processes]
        codes = [process.returncode for process in processes]
        if action == "communicate":
            assert (codes, stderr) == ([0, 0], ["", ""])
        else:
            assert (codes, stderr) == ([2, 2], ["imsm: data=x: is bad\n", ""])
    assert received(tmp_path) == EXPECTED


def listening_addresses(port: int) -> list[str]:
    """Return the local addresses on which a TCP port listens, from /proc/net."""
    found = []
    for name in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{name}").read_text().splitlines()[1:]:
            local, state = line.split()[1], line.split()[3]
            address, _, number = local.partition(":")
            if state == "0A" and int(number, 16) == port:
                found.append(socket.inet_ntoa(bytes.fromhex(address)[::-1]) if name == "tcp" else address)
    return found


def test_the_store_listens_on_the_given_address_only() -> None:
    for address in ("127.0.0.1", "127.0.0.5"):
        store = listening_store(address)
        client = TCPStore(address, store.port, is_master=False)
        client.set("key", "value")
        assert store.get("key") == b"value"
        assert listening_addresses(store.port) == [address]


def test_an_address_that_other_machines_cannot_use_is_a_user_error(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"MASTER_ADDR=192\.0\.2\.1"):
        listening_store("192.0.2.1", loopback=False)
    with pytest.raises(UserError, match=r"MASTER_ADDR=no\.such\.host\.invalid"):
        listening_store("no.such.host.invalid", loopback=False)
    taken = listening_store("127.0.0.1")
    with pytest.raises(UserError, match=f"MASTER_PORT={taken.port}"):
        listening_store("127.0.0.1", taken.port)
    own = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.1.1", 0))]
    monkeypatch.setattr(rendezvous.socket, "getaddrinfo", lambda *_, **__: own)
    with pytest.raises(UserError, match=r"node1.*is 127\.0\.1\.1"):
        listening_store("node1", loopback=False)


def test_processes_on_one_machine_meet_on_the_loopback_interface() -> None:
    one_machine = TORCHRUN | {"LOCAL_WORLD_SIZE": "8"}
    for environment in (one_machine, TORCHRUN | {"LOCAL_SIZE": "8"}, SRUN | {"SLURM_STEP_NUM_NODES": "1"}):
        group = detect_process_group(environment)
        assert group is not None and group.one_machine and group.address == "127.0.0.1"
    # torchrun holds the store itself, at the address that it gives
    group = detect_process_group(one_machine | {"TORCHELASTIC_USE_AGENT_STORE": "True"})
    assert group is not None and group.address == "node1"
    for environment in (TORCHRUN | {"LOCAL_WORLD_SIZE": "4"}, SRUN | {"SLURM_STEP_NUM_NODES": "2"}):
        group = detect_process_group(environment)
        assert group is not None and not group.one_machine and group.address != "127.0.0.1"
