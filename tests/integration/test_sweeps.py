"""Sweeps as a user meets them: members that fail or die, what is repeated, a search."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import imsm.cli.run
from imsm.cli import compare as table
from imsm.config.compose import ConfigComposer
from imsm.config.identity import run_name
from imsm.evaluation.result import write_result
from imsm.pipeline.run_status import load_if_finished, read_failure, run_dir_of, write_failure
from imsm.pipeline.sweeps.status import JobOutcome, SweepDir, mark_missing_failed, summary
from imsm.reporting.sweep_table import SweepRun, render_markdown, sweep_tables
from imsm.utils.paths import conf_folder
from tests.cli.test_run import _stub_flow, run_main
from tests.helpers.config import config, result

TINY = ["data.max_train_examples=16", "trainer.num_epochs=1", "evaluation.limit=2", "evaluation.tasks=[target]"]
# A gate that fails as long as there is a file that says how; whoever fails removes the file.
BRITTLE = """
import os, signal
from pathlib import Path
from imsm.models.siamese.gate import Gate

def struck(how: str, rank: int) -> bool:
    try:
        Path(__file__).with_name(f"{how}_{rank}").unlink()
    except FileNotFoundError:
        return False
    return True

class Brittle(Gate):
    def __init__(self, *, hidden_size: int, inputs: list[str], rank: int) -> None:
        if struck("kill", rank):
            os.kill(os.getpid(), signal.SIGKILL)
        if struck("raise", rank):
            raise LookupError("the gate broke")
        super().__init__(hidden_size=hidden_size, inputs=inputs, rank=rank)
"""


def command(module: str, root: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", module, *arguments],
        capture_output=True,
        text=True,
        cwd=root,
        env={**os.environ, "IMSM_RUNS": str(root / "runs"), "OMP_NUM_THREADS": "1", **environment},
        timeout=500,
    )


def start_times(runs: Path) -> dict[str, int]:
    """When each run's result was written."""
    return {path.parent.name: path.stat().st_mtime_ns for path in runs.glob("*/result.json")}


@pytest.mark.slow
def test_two_members_of_a_sweep_fail_and_a_rerun_repeats_only_them(tmp_path: Path) -> None:
    """Several at once, each a process: one raises, one is killed; the others finish."""
    own = tmp_path / "own"
    (own / "gate").mkdir(parents=True)
    (own / "brittle_gate.py").write_text(BRITTLE)
    (own / "gate" / "brittle.yaml").write_text(
        "name: brittle\n_target_: brittle_gate.Brittle\nrank: 8\npooling: mean\n"
        "inputs: [query_original, original, tuned, query_tuned]\n"
    )
    (own / "raise_8").touch()
    (own / "kill_16").touch()
    overrides = ["gate=brittle", "gate.rank=4,8,16", "seed=0,1", *TINY, "sweep=local"]
    sweep = ["-m", "--config-dir", str(own), *overrides, "hydra.launcher.cpus_per_task=1"]

    first = command("imsm.run", tmp_path, *sweep)
    assert first.returncode == 1, first.stderr
    assert "sweep of 6: 4 done, 2 failed" in first.stdout
    assert "LookupError: the gate broke" in first.stdout
    done = start_times(tmp_path / "runs")
    assert len(done) == 4

    shown = command("imsm.cli.compare", tmp_path, "--config-dir", str(own), *overrides)
    assert shown.returncode == 0, shown.stderr
    assert shown.stdout.count("failed: ") == 2
    assert "failed: LookupError: the gate broke" in shown.stdout
    assert "failed: its process ended without a result" in shown.stdout
    assert "again: python -m imsm.run --config-dir" in shown.stdout
    assert "missing: " not in shown.stdout

    second = command("imsm.run", tmp_path, *sweep)
    assert second.returncode == 0, second.stderr + second.stdout
    assert "sweep of 6: 2 done, 0 failed, 4 skipped (finished before)" in second.stdout
    again = start_times(tmp_path / "runs")
    assert len(again) == 6
    assert {name: again[name] for name in done} == done
    assert not list((tmp_path / "runs").glob("*/failure.json"))


@pytest.mark.slow
def test_a_search_goes_on_after_a_trial_and_ends_with_the_best_values(tmp_path: Path) -> None:
    search = ["sweep=optuna", "gate.rank=choice(4,8)", *TINY]
    done = command("imsm.run", tmp_path, "-m", *search, "hydra.sweeper.n_trials=2")
    assert done.returncode == 0, done.stderr
    assert "sweep of 2: 2 done, 0 failed" in done.stdout
    best = done.stdout.splitlines()[-1]
    assert best.startswith("best: gate.rank=") and " trainer.learning_rate=0.0" in best
    before = start_times(tmp_path / "runs")
    more = command("imsm.run", tmp_path, "-m", *search, "hydra.sweeper.n_trials=3")
    assert "sweep of 3: 1 done, 0 failed, 2 skipped (finished before)" in more.stdout, more.stderr
    assert before.keys() < start_times(tmp_path / "runs").keys()
    shown = command("imsm.cli.compare", tmp_path, *search)
    assert "trainer.learning_rate" in shown.stdout and "missing" not in shown.stdout
    assert sum(line.startswith((" 4 ", " 8 ")) for line in shown.stdout.splitlines()) == 3


SBATCH = """#!{python}
import os, subprocess, sys
script = open(sys.argv[-1]).read()
(array,) = [line for line in script.splitlines() if line.startswith("#SBATCH --array=")]
first, last = array.split("=")[1].split("%")[0].split("-")
for index in range(int(first), int(last) + 1):
    own = dict(SLURM_ARRAY_JOB_ID="7", SLURM_ARRAY_TASK_ID=str(index), SLURM_JOB_ID=f"{{index}}")
    quiet = dict(stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    subprocess.Popen(["bash", "-c", script], env=os.environ | own, **quiet)
print("Submitted batch job 7")
"""
SRUN = """#!/bin/sh
while [ "${1#/*python}" = "$1" ]; do shift; done
exec "$@"
"""
SACCT = """#!/bin/sh
printf 'JobID|State|NodeList\n7_0|RUNNING|here\n7_1|RUNNING|here\n'
"""


@pytest.mark.slow
def test_a_sweep_on_slurm_is_one_job_array(tmp_path: Path) -> None:
    """SLURM's programs stand in for themselves, here: the members only make a plan."""
    programs = tmp_path / "bin"
    programs.mkdir()
    texts = {"sbatch": SBATCH.format(python=sys.executable), "srun": SRUN, "sacct": SACCT}
    for name, text in texts.items():
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)
    path = f"{programs}{os.pathsep}{os.environ['PATH']}"
    given = ["sweep=slurm", "hydra.launcher.partition=a100", "mode=plan", "gate.rank=4,8"]
    done = command("imsm.run", tmp_path, "-m", *given, PATH=path)
    assert done.returncode == 0, done.stderr
    assert "gate.rank=4: done" in done.stdout and "gate.rank=8: done" in done.stdout
    (script,) = (tmp_path / "runs").glob("sweeps/slurm-*/*/jobs/7_submission.sh")
    asked = script.read_text()
    for line in ("--array=0-1%2", "--partition=a100", "--gpus-per-node=1", "--time=480"):
        assert f"#SBATCH {line}\n" in asked


def test_a_failed_run_is_noted_in_its_folder_until_it_is_done(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("IMSM_RUNS", str(tmp_path))
    seen = []

    def carry_out(chosen) -> None:
        folder = run_dir_of(chosen, runs_root=tmp_path)
        seen.append((folder, read_failure(folder)))
        folder.mkdir(exist_ok=True)
        if len(seen) == 2:
            raise ZeroDivisionError("by\nnothing")

    _stub_flow(monkeypatch, carry_out)
    assert run_main(monkeypatch, "-m", "method=peft", "seed=0,1,2") == 1
    (_, _), (folder, _), (_, _) = seen
    noted = read_failure(folder)
    assert noted is not None
    assert (noted["error"], noted["exit_code"]) == ("ZeroDivisionError: by nothing", 1)
    assert noted["command"] == "python -m imsm.run method=peft seed=1"
    assert "Traceback" in capsys.readouterr().err
    assert table.main(["method=peft", "seed=0,1,2"]) == 0
    told = capsys.readouterr().out
    assert "failed: ZeroDivisionError: by nothing\n  again: python -m imsm.run method=peft" in told
    assert told.count("missing") == 2
    assert run_main(monkeypatch, "method=peft", "seed=1") == 0
    assert seen[-1] == (folder, None)
    assert not list(tmp_path.glob("*/failure.json"))


def test_a_member_that_leaves_the_process_ends_no_sweep(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("IMSM_RUNS", str(tmp_path))
    seen = []

    def carry_out(chosen) -> None:
        seen.append(chosen.seed)
        sys.exit(3)

    _stub_flow(monkeypatch, carry_out)
    assert run_main(monkeypatch, "-m", "method=peft", "seed=0,1") == 1
    assert seen == [0, 1]


def test_nothing_is_noted_in_a_folder_that_holds_something_else(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("IMSM_RUNS", str(tmp_path / "runs"))
    other = tmp_path / "photographs"
    other.mkdir()

    def carry_out(chosen) -> None:
        raise ValueError("other files")

    _stub_flow(monkeypatch, carry_out)
    assert run_main(monkeypatch, f"run_dir={other}") == 1
    assert not list(other.iterdir())


def test_a_plain_sweep_leaves_nothing_but_its_runs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("IMSM_RUNS", str(tmp_path / "runs"))
    _stub_flow(monkeypatch, lambda chosen: None)
    assert run_main(monkeypatch, "-m", "seed=0,1") == 0
    assert not list(tmp_path.iterdir())
    assert imsm.run.FOLDER not in os.environ


def test_a_search_in_which_all_trials_fail(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper")
    monkeypatch.setenv("IMSM_RUNS", str(tmp_path / "runs"))

    def carry_out(chosen) -> None:
        raise ValueError("no")

    _stub_flow(monkeypatch, carry_out)
    assert run_main(monkeypatch, "-m", "sweep=optuna", "hydra.sweeper.n_trials=2") == 1
    told = capsys.readouterr()
    assert "sweep of 2: 0 done, 2 failed" in told.out
    assert "no trial was judged" in told.out
    assert "No trials are completed" not in told.err


def test_a_finished_run_counts_as_long_as_it_is_what_is_asked_for(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    for role in ("train", "test"):
        (data / f"{role}.jsonl").write_text('{"input": "a", "output": "b"}\n')
    own = ("data=jsonl", f"data.local_dir={data}")
    chosen = config("method=peft", *own)
    assert load_if_finished(chosen, runs_root=tmp_path) is None
    folder = tmp_path / run_name(chosen)
    folder.mkdir()
    write_result(folder, result("peft", *own))
    assert load_if_finished(chosen, runs_root=tmp_path) is not None
    assert load_if_finished(config("method=peft", "logger=wandb", *own), runs_root=tmp_path)
    assert not load_if_finished(config("method=peft", "evaluation.limit=3", *own), runs_root=tmp_path)
    assert not load_if_finished(config("method=peft", "mode=evaluate", *own), runs_root=tmp_path)
    write_failure(folder, error="x", exit_code=1, command="")
    assert load_if_finished(chosen, runs_root=tmp_path) is None
    (folder / "failure.json").unlink()
    later = (folder / "result.json").stat().st_mtime_ns + 10**9
    os.utime(data / "test.jsonl", ns=(later, later))
    assert load_if_finished(chosen, runs_root=tmp_path) is None


def test_a_member_that_left_no_word_counts_as_failed(tmp_path: Path) -> None:
    sweep = SweepDir(folder=tmp_path)
    sweep.write_status(JobOutcome(number=1, overrides=["seed=1"], state="done"))
    members = mark_missing_failed(sweep.read_statuses(), [["seed=0"], ["seed=1"]])
    assert [member.state for member in members] == ["failed", "done"]
    assert max(member.exit_code for member in members) == 1
    told = summary(members, config_dir=None)
    assert told[0] == "sweep of 2: 1 done, 1 failed"
    assert told[1] == "  failed: python -m imsm.run seed=0"


def test_a_failed_run_stands_in_the_table_with_its_command() -> None:
    members = [
        SweepRun(
            swept={"seed": str(seed), "method": "peft"}, target="gsm8k", about={},
            command=f"seed={seed}", result=None, failure=failure,
        )
        for seed, failure in enumerate(["NaN", None])
    ]  # fmt: skip
    (found,) = sweep_tables(members)
    assert found.table.rows[1][-1] == "failed"
    assert (found.failed, found.missing) == ([("NaN", "seed=0")], ["seed=1"])
    assert "failed: NaN" in render_markdown([found])


@pytest.mark.parametrize(
    ("overrides", "sweep", "told"),
    [
        (["sweep=slurm"], False, "sweep=slurm: is for a sweep; add -m"),
        (["sweep=slurm,optuna"], True, "sweep takes the name of one option"),
        (["sweep=slrum"], True, "did you mean sweep=slurm?"),
        (["sweep=slurm", "hydra.launcher.partitio=x"], True, "hydra.launcher.partitio"),
        (
            ["sweep=optuna", "trainer.learning_rate=interval(0.1,3)"],
            True,
            "trainer.learning_rate=3.0: must be at most 1",
        ),
        (["sweep=optuna", "gate.rank=choice(0,4)"], True, "gate.rank=0: must be at least 1"),
        (["trainer.learning_rate=interval(0.1,0.2)"], True, "needs sweep=optuna"),
    ],
)
def test_a_wrong_choice_of_sweep_is_told_before_anything_starts(overrides: list[str], sweep: bool, told: str) -> None:
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    (problem,) = ConfigComposer().validate(overrides, sweep=sweep)
    assert told in problem and "\n" not in problem


@pytest.mark.parametrize("option", ["none", "local", "slurm", "optuna"])
def test_every_way_to_sweep_composes(option: str) -> None:
    checks = ConfigComposer()
    assert checks.validate([f"sweep={option}", "seed=0,1"], sweep=True) == []
    plan = checks.sweep_spec([f"sweep={option}", "seed=0,1"], sweep=True)
    assert plan.kept == (option != "none")
    assert plan.searches == (option == "optuna")
    if option != "none":
        assert (plan.name, len(plan.members)) == (option, 0 if plan.searches else 2)


def test_a_sweep_whose_plugin_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    from hydra.core.config_store import ConfigStore

    store = ConfigStore.instance()
    kept = {n: v for n, v in store.repo["hydra"]["sweeper"].items() if n != "optuna.yaml"}
    monkeypatch.setitem(store.repo["hydra"], "sweeper", kept)
    (problem,) = ConfigComposer().validate(["sweep=optuna"], sweep=True)
    assert problem == (
        "optuna: this sweeper is not installed; pip install -c constraints.txt -e '.[optuna]' brings it"
    )


def test_slurm_needs_sbatch(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("IMSM_RUNS", str(tmp_path / "runs"))
    assert run_main(monkeypatch, "-m", "sweep=slurm", "seed=0,1") == 2
    told = capsys.readouterr().err
    assert "no sbatch on this machine" in told and "Traceback" not in told
    assert not list(tmp_path.iterdir())


def test_as_many_local_jobs_at_once_as_there_is_room_for(monkeypatch: pytest.MonkeyPatch) -> None:
    submission = pytest.importorskip("imsm.pipeline.sweeps.launchers")
    from imsm.utils.errors import UserError

    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(8)))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")

    def places(cpus: int | None = 2, gpus: int | None = None, memory: int | None = None):
        return submission._places(cpus_per_task=cpus, gpus_per_node=gpus, mem_gb=memory)

    assert places() == [[], [], [], []]
    assert places(cpus=16) == [[]]
    assert places(memory=10**6) == [[]]
    with pytest.raises(UserError, match="shows 0 GPUs"):
        places(gpus=1)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,7")
    assert places() == [[4], [5], [7]]
    assert places(gpus=2) == [[4, 5]]
    assert places(gpus=0) == [[], [], [], []]


def test_the_same_sweep_is_not_started_twice_at_once(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper")
    from imsm.utils.files import file_lock

    monkeypatch.setenv("IMSM_RUNS", str(tmp_path))
    _stub_flow(monkeypatch, lambda chosen: None)
    search = ["-m", "sweep=optuna", "hydra.sweeper.n_trials=1"]
    run_main(monkeypatch, *search)
    (place,) = (tmp_path / "sweeps").iterdir()
    assert place.name.startswith("optuna-")
    (start,) = (path for path in place.iterdir() if path.is_dir())
    assert json.loads((start / "members" / "0.json").read_text())["state"] == "done"
    capsys.readouterr()
    with file_lock(place):
        assert run_main(monkeypatch, *search) == 2
    assert "another process is at work" in capsys.readouterr().err
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_PORT"):
        monkeypatch.setenv(name, "0")
    monkeypatch.setenv("MASTER_ADDR", "localhost")
    assert run_main(monkeypatch, *search) == 2
    assert "not under torchrun or srun" in capsys.readouterr().err
