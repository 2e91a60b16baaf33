"""Sweeps: failed and killed jobs, reruns, a search, and jobs on SLURM."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest

from imsm.cli.main import main
from imsm.config.schema import RunConfig
from imsm.pipeline.run_status import read_failure, run_dir_of
from imsm.pipeline.sweeps.status import FOLDER
from imsm.utils.files import file_lock
from tests.helpers.cli import imsm_run, replace_experiment
from tests.helpers.word_run import word_overrides

TINY = ["data.max_train_examples=16", "trainer.num_epochs=1", "evaluation.limit=2", "evaluation.tasks=[target]"]
# Fails as long as the file `<how>_<rank>` exists, and deletes it first.
BRITTLE_GATE = """
import os, signal
from pathlib import Path
from imsm.models.siamese.gate import Gate

def triggered(how: str, rank: int) -> bool:
    try:
        Path(__file__).with_name(f"{how}_{rank}").unlink()
    except FileNotFoundError:
        return False
    return True

class BrittleGate(Gate):
    def __init__(self, *, hidden_size: int, inputs: list[str], rank: int) -> None:
        if triggered("kill", rank):
            os.kill(os.getpid(), signal.SIGKILL)
        if triggered("raise", rank):
            raise LookupError("the gate broke")
        super().__init__(hidden_size=hidden_size, inputs=inputs, rank=rank)
"""


def result_times(runs: Path) -> dict[str, int]:
    return {path.parent.name: path.stat().st_mtime_ns for path in runs.glob("*/result.json")}


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("IMSM_RUNS", str(tmp_path / "runs"))
    return tmp_path / "runs"


@pytest.mark.slow  # six processes of jobs
def test_a_rerun_repeats_only_the_jobs_that_raised_or_were_killed(
    monkeypatch: pytest.MonkeyPatch, runs: Path, word_files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    custom = tmp_path / "custom"
    (custom / "gate").mkdir(parents=True)
    (custom / "brittle_gate.py").write_text(BRITTLE_GATE)
    (custom / "gate" / "brittle.yaml").write_text(
        "name: brittle\n_target_: brittle_gate.BrittleGate\nrank: 8\npooling: mean\n"
        "inputs: [query_original, original, tuned, query_tuned]\n"
    )
    (custom / "raise_8").touch()
    (custom / "kill_16").touch()
    overrides = ["gate=brittle", "gate.rank=4,8,16", *word_overrides(word_files), "sweep=local"]
    sweep = ["-m", "--config-dir", str(custom), *overrides, "hydra.launcher.cpus_per_task=1"]

    assert imsm_run(monkeypatch, *sweep) == 1
    first = capsys.readouterr().out
    assert "sweep of 3: 1 done, 2 failed" in first
    assert "LookupError: the gate broke" in first
    done = result_times(runs)
    assert len(done) == 1

    assert main(["compare", "--config-dir", str(custom), *overrides]) == 0
    table = capsys.readouterr().out
    assert table.count("failed: ") == 2
    assert "failed: LookupError: the gate broke" in table
    assert "failed: its process ended without a result" in table
    assert "again: imsm run --config-dir" in table
    assert "missing: " not in table

    code, second = imsm_run(monkeypatch, *sweep), capsys.readouterr()
    assert code == 0, second.err + second.out
    assert "sweep of 3: 2 done, 0 failed, 1 skipped (finished before)" in second.out
    repeated = result_times(runs)
    assert len(repeated) == 3
    assert {name: repeated[name] for name in done} == done
    assert not list(runs.glob("*/failure.json"))


@pytest.mark.slow
def test_a_search_skips_finished_trials_and_prints_the_best_values(
    monkeypatch: pytest.MonkeyPatch, runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper")
    # two goals need a forgetting test
    search = ["sweep=optuna", "gate.rank=choice(4,8)", *TINY[:-1], "evaluation.tasks=[target,mrpc]"]
    assert imsm_run(monkeypatch, "-m", *search, "hydra.sweeper.n_trials=2") == 0
    done = capsys.readouterr().out
    assert "sweep of 2: 2 done, 0 failed" in done
    assert "not beaten in both target and average of the forgetting tests:" in done
    assert " points: gate.rank=" in done and " trainer.learning_rate=0.0" in done
    before = result_times(runs)
    assert imsm_run(monkeypatch, "-m", *search, "hydra.sweeper.n_trials=3") == 0
    assert "sweep of 3: 1 done, 0 failed, 2 skipped (finished before)" in capsys.readouterr().out
    assert before.keys() < result_times(runs).keys()
    assert main(["compare", *search]) == 0
    table = capsys.readouterr().out
    assert "trainer.learning_rate" in table and "missing" not in table
    assert sum(line.startswith((" 4 ", " 8 ")) for line in table.splitlines()) == 3


# Stand-ins for SLURM's programs, which run the jobs on this machine.
SBATCH = """#!{python}
import os, subprocess, sys
script = open(sys.argv[-1]).read()
(array,) = [line for line in script.splitlines() if line.startswith("#SBATCH --array=")]
first, last = array.split("=")[1].split("%")[0].split("-")
for index in range(int(first), int(last) + 1):
    job = dict(SLURM_ARRAY_JOB_ID="7", SLURM_ARRAY_TASK_ID=str(index), SLURM_JOB_ID=f"{{index}}")
    quiet = dict(stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    subprocess.Popen(["bash", "-c", script], env=os.environ | job, **quiet)
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
def test_a_sweep_on_slurm_is_one_job_array(
    monkeypatch: pytest.MonkeyPatch, runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, text in {"sbatch": SBATCH.format(python=sys.executable), "srun": SRUN, "sacct": SACCT}.items():
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}{os.pathsep}{os.environ['PATH']}")
    overrides = ["sweep=slurm", "hydra.launcher.partition=a100", "mode=plan", "gate.rank=4,8"]
    code, done = imsm_run(monkeypatch, "-m", *overrides), capsys.readouterr()
    assert code == 0, done.err
    assert "gate.rank=4: done" in done.out and "gate.rank=8: done" in done.out
    (submission,) = runs.glob("sweeps/slurm-*/*/jobs/7_submission.sh")
    script = submission.read_text()
    for line in ("--array=0-1%2", "--partition=a100", "--gpus-per-node=1", "--time=480"):
        assert f"#SBATCH {line}\n" in script


def test_slurm_needs_sbatch(
    monkeypatch: pytest.MonkeyPatch, runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert imsm_run(monkeypatch, "-m", "sweep=slurm", "seed=0,1") == 2
    error = capsys.readouterr().err
    assert error.startswith("imsm: sweep=slurm: no sbatch") and "Traceback" not in error
    assert not list(tmp_path.iterdir())


def test_a_failure_is_recorded_until_the_run_is_finished(
    monkeypatch: pytest.MonkeyPatch, runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    seen = []

    def experiment(config: RunConfig) -> None:
        folder = run_dir_of(config, runs_root=runs)
        seen.append((folder, read_failure(folder)))
        folder.mkdir(parents=True, exist_ok=True)
        if len(seen) == 2:
            raise ZeroDivisionError("by\nnothing")

    replace_experiment(monkeypatch, experiment)
    assert imsm_run(monkeypatch, "-m", "method=peft", "seed=0,1,2") == 1
    (_, _), (folder, _), (_, _) = seen
    failure = read_failure(folder)
    assert failure is not None
    assert (failure["error"], failure["exit_code"]) == ("ZeroDivisionError: by nothing", 1)
    assert failure["command"] == "imsm run method=peft seed=1"
    assert "Traceback" in capsys.readouterr().err
    assert main(["compare", "method=peft", "seed=0,1,2"]) == 0
    output = capsys.readouterr().out
    assert "failed: ZeroDivisionError: by nothing\n" in output
    assert "again: imsm run method=peft seed=1\n" in output
    assert output.count("missing") == 2
    assert imsm_run(monkeypatch, "method=peft", "seed=1") == 0
    assert seen[-1] == (folder, None)
    assert not list(runs.glob("*/failure.json"))


def test_a_job_that_exits_does_not_stop_the_sweep(monkeypatch: pytest.MonkeyPatch, runs: Path) -> None:
    seeds = []

    def experiment(config: RunConfig) -> None:
        seeds.append(config.seed)
        sys.exit(3)

    replace_experiment(monkeypatch, experiment)
    assert imsm_run(monkeypatch, "-m", "method=peft", "seed=0,1") == 1
    assert seeds == [0, 1]


def test_no_failure_is_recorded_in_a_folder_with_other_files(
    monkeypatch: pytest.MonkeyPatch, runs: Path, tmp_path: Path
) -> None:
    other = tmp_path / "photographs"
    other.mkdir()

    def experiment(config: RunConfig) -> None:
        raise ValueError("other files")

    replace_experiment(monkeypatch, experiment)
    assert imsm_run(monkeypatch, f"run_dir={other}") == 1
    assert not list(other.iterdir())


def test_a_sweep_in_one_process_leaves_no_folder(monkeypatch: pytest.MonkeyPatch, runs: Path) -> None:
    replace_experiment(monkeypatch, lambda config: None)
    assert imsm_run(monkeypatch, "-m", "seed=0,1") == 0
    assert not list(runs.parent.iterdir())
    assert FOLDER not in os.environ


def test_a_search_whose_trials_all_fail_prints_a_summary(
    monkeypatch: pytest.MonkeyPatch, runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper")

    def experiment(config: RunConfig) -> None:
        raise ValueError("no")

    replace_experiment(monkeypatch, experiment)
    assert imsm_run(monkeypatch, "-m", "sweep=optuna", "hydra.sweeper.n_trials=2") == 1
    captured = capsys.readouterr()
    assert "sweep of 2: 0 done, 2 failed" in captured.out
    assert "search: no trial" in captured.out
    assert "No trials are completed" not in captured.err


def test_the_same_sweep_cannot_run_twice_at_once(
    monkeypatch: pytest.MonkeyPatch, runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper")
    replace_experiment(monkeypatch, lambda config: None)
    search = ["-m", "sweep=optuna", "hydra.sweeper.n_trials=1"]
    imsm_run(monkeypatch, *search)
    (folder,) = (runs / "sweeps").iterdir()
    assert folder.name.startswith("optuna-")
    (status,) = folder.glob("*/status/0.json")
    assert json.loads(status.read_text())["state"] == "done"
    capsys.readouterr()
    with file_lock(folder):
        assert imsm_run(monkeypatch, *search) == 2
    assert str(folder) in capsys.readouterr().err
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_PORT"):
        monkeypatch.setenv(name, "0")
    monkeypatch.setenv("MASTER_ADDR", "localhost")
    assert imsm_run(monkeypatch, *search) == 2
    assert "torchrun" in capsys.readouterr().err
