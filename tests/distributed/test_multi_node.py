"""Several nodes: hostfiles, and commands that the launchers' own parsers accept."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

import pytest
from torch.distributed.run import parse_args

from imsm.distributed.multi_node import launch_nodes, read_hostfile, slots_per_node, srun_command
from imsm.pipeline.plan.plan import make_plan
from imsm.pipeline.start import start_run
from imsm.utils.errors import RunError, UserError
from imsm.utils.paths import runs_root
from tests.helpers.config import config

TWO = "engine=zero2", "engine.nnodes=2", "engine.nproc_per_node=8"
CHOICES = (*TWO, "method=imsm", "evaluation.tasks=[target]", "backbone=llama3")


@pytest.fixture
def hosts(tmp_path: Path) -> Path:
    path = tmp_path / "hosts"
    path.write_text("# cluster\nnode1 slots=8\n\nnode2 slots=4  # older node\n")
    return path


def test_slots_are_read_and_limit_the_processes(hosts: Path) -> None:
    assert read_hostfile(str(hosts)) == {"node1": 8, "node2": 4}
    assert slots_per_node(str(hosts), nnodes=2, nproc_per_node=None) == 4
    assert slots_per_node(str(hosts), nnodes=1, nproc_per_node=8) == 8


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("node1 slots=8\nnode2\n", "line 2 is 'node2'; must be like 'node1 slots=8'"),
        ("node1 slots=0\n", "line 1 is 'node1 slots=0'"),
        ("a slots=1\na slots=1\n", "line 2 names a again"),
        ("# nothing\n", "names no host"),
        (None, "cannot be read (No such file or directory)"),
    ],
)
def test_an_invalid_hostfile_is_a_user_error(tmp_path: Path, text: str | None, message: str) -> None:
    path = tmp_path / "hosts"
    if text is not None:
        path.write_text(text)
    with pytest.raises(UserError) as error:
        config("mode=plan", "engine=zero2", "engine.nnodes=2", f"engine.hostfile={path}")
    assert f"engine.hostfile={path}: " in str(error.value)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        (("engine.nnodes=3",), "names 2; set engine.nnodes=2, or add hosts"),
        (("engine.nnodes=2", "engine.nproc_per_node=8"), "node2 has 4 slots in engine.hostfile="),
        ((), "is for several nodes; set engine.nnodes as well"),
    ],
)
def test_a_hostfile_that_does_not_match_the_settings_is_a_user_error(
    hosts: Path, choices: tuple[str, ...], message: str
) -> None:
    with pytest.raises(UserError) as error:
        config("engine=zero2", f"engine.hostfile={hosts}", *choices)
    assert message in str(error.value)


def test_torchrun_accepts_the_commands_of_a_plan() -> None:
    """No GPU is needed here: a plan may be for other machines."""
    plan = make_plan(config("mode=plan", *CHOICES), overrides=("mode=plan", *CHOICES))
    lines = [shlex.split(line) for line in plan.start if line.startswith("torchrun ")]
    assert len(lines) == 2
    for node, line in enumerate(lines):
        parsed = parse_args(line[1:])
        assert (parsed.nnodes, parsed.nproc_per_node, parsed.node_rank) == ("2", "8", node)
        assert (parsed.master_addr, parsed.master_port) == ("HOST", 29500)
        assert (parsed.module, parsed.training_script) == (True, "imsm.run")
        assert parsed.training_script_args == list(CHOICES)
    assert plan.settings["processes"] == "8 processes on each of 2 nodes, 16 in total; DeepSpeed ZeRO stage 2"


def test_srun_command_of_a_plan() -> None:
    plan = make_plan(config("mode=plan", *CHOICES), overrides=CHOICES)
    (line,) = [line for line in plan.start if line.startswith("srun ")]
    command = ["-m", "imsm.run", *CHOICES]
    assert shlex.split(line) == srun_command(command, nnodes=2, nproc_per_node=8)
    assert shlex.split(line)[:7] == [*("srun", "--nodes", "2", "--ntasks-per-node", "8", "--gpus-per-node", "8")]


def test_deepspeed_accepts_the_command_of_a_plan(hosts: Path) -> None:
    runner = pytest.importorskip("deepspeed.launcher.runner")
    hosts.write_text("node1 slots=8\nnode2 slots=8\nnode3 slots=8\n")
    choices = ("engine=zero3", "engine.nnodes=2", f"engine.hostfile={hosts}")
    plan = make_plan(config("mode=plan", *choices), overrides=choices)
    (line,) = [shlex.split(line) for line in plan.start if "deepspeed" in line and "-m" in line]
    assert line[:3] == ["python", "-m", "deepspeed.launcher.runner"]
    parsed = runner.parse_args(line[3:])
    assert (parsed.hostfile, parsed.num_nodes, parsed.num_gpus) == (str(hosts), 2, 8)
    assert (parsed.module, parsed.no_local_rank) == (True, True)
    assert parsed.user_script == "imsm.cli.worker"
    assert parsed.user_args == [str(runs_root() / plan.name / "processes" / "run.json")]
    slots = runner.fetch_hostfile(parsed.hostfile)
    taken = runner.apply_num_nodes_and_gpus({host: list(range(number)) for host, number in slots.items()}, 2, 8)
    assert list(taken) == ["node1", "node2"]


def test_one_node_needs_no_commands() -> None:
    plan = make_plan(config("mode=plan", "engine=zero2", "engine.nproc_per_node=8"))
    assert plan.start == []
    assert plan.settings["processes"] == "8 processes; DeepSpeed ZeRO stage 2"
    assert "processes" not in make_plan(config("mode=plan", "engine=single")).settings


def test_several_nodes_without_a_hostfile_print_the_commands(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("imsm.pipeline.start.visible_gpus", lambda: 0)
    with pytest.raises(UserError) as error:
        start_run(config(*TWO), runs_root=tmp_path, overrides=TWO)
    message = str(error.value)
    assert message.startswith("engine.nnodes=2: ")
    for part in ("--node-rank 0", "--node-rank 1", "\nsrun --nodes 2", "engine.hostfile=FILE"):
        assert part in message
    with pytest.raises(UserError, match=r"engine\.nnodes=2: no GPU is visible .* engine\.nproc_per_node"):
        start_run(config("engine=zero2", "engine.nnodes=2"), runs_root=tmp_path)
    assert not list(tmp_path.iterdir())


def test_missing_pdsh_is_a_user_error_before_anything_starts(tmp_path: Path, hosts: Path, monkeypatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="needs pdsh on this machine"):
        launch_nodes({}, run_dir=tmp_path / "run", hostfile=str(hosts), nnodes=2, nproc_per_node=1)
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_deepspeeds_launcher_starts_both_nodes(tmp_path: Path, monkeypatch, capfd) -> None:
    """With stubs for `ssh` and `pdsh`, both nodes are this machine."""
    pytest.importorskip("deepspeed")
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "ssh").write_text("#!/bin/sh\necho 127.0.0.1\n")
    (programs / "pdsh").write_text(
        f"#!{sys.executable}\n"
        "import subprocess, sys\n"
        "command = ' '.join(sys.argv[sys.argv.index('-w') + 2:])\n"
        "if 'pkill' in command:\n"
        "    sys.exit()\n"
        "nodes = [subprocess.Popen(['sh', '-c', command.replace('%n', n)]) for n in '01']\n"
        "sys.exit(max(node.wait() for node in nodes))\n"
    )
    for program in programs.iterdir():
        program.chmod(0o755)
    monkeypatch.setenv("PATH", str(programs), prepend=":")
    hosts = tmp_path / "hosts"
    hosts.write_text("node1 slots=1\nnode2 slots=1\n")
    options = {"hostfile": str(hosts), "nnodes": 2, "nproc_per_node": 1}
    run, module = tmp_path / "run", "tests.distributed.programs.meeting"
    settings = {"folder": str(tmp_path), "action": "communicate", "device": "cpu"}
    launch_nodes(settings, run_dir=run, module=module, **options)
    received = [(tmp_path / f"received-{rank}.json").read_text() for rank in (0, 1)]
    assert received == ['[["I am 0", "I am 1"], 7, 2, 0]'] * 2
    capfd.readouterr()
    with pytest.raises((RunError, UserError), match="see above"):
        launch_nodes({"action": "reject"}, run_dir=run, module=module, **options)
    assert capfd.readouterr().err.count("imsm: data=x: is bad") == 1
