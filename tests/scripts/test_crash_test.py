"""The crash test finds orphans and every kind of difference."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from scripts.crash_test import differences, kill_one, phase_of, processes_of, run_command
from tests.helpers.paths import ROOT

CHILD = "import subprocess, sys; subprocess.run([sys.executable, '-c', {code!r}])"
BUSY = "import time; end = time.time() + 60\nwhile time.time() < end: pass"


def save_runs(root: Path, *, step: int = 3) -> Path:
    """Write a trained run and the original model's run as the command does."""
    for name, weights in (("mini-lora-imsm-query", b"abc"), ("mini-original", None)):
        task = root / name / "evaluation" / "webq-12"
        task.mkdir(parents=True)
        lines = [json.dumps({"id": f"webq/{number}", "answer": "x"}) for number in range(3)]
        (task / "predictions.jsonl").write_text("\n".join(lines) + "\n")
        entry = {"num_examples": 3, "metrics": {"contain": 50.0}}
        result = {"evaluation": {"tasks": {"webq": entry}}}
        (root / name / "result.json").write_text(json.dumps(result))
        if weights:
            (root / name / "model" / "adapter").mkdir(parents=True)
            (root / name / "model" / "adapter" / "a.safetensors").write_bytes(weights)
            log = [{"step": number, "loss": 1 / number} for number in range(1, step + 1)]
            log.append({"step": None, "webq/contain": 50.0})
            text = "".join(json.dumps(record) + "\n" for record in log)
            (root / name / "log.jsonl").write_text(text)
    return root


def test_equal_runs_do_not_differ(tmp_path: Path) -> None:
    assert differences(save_runs(tmp_path / "a"), save_runs(tmp_path / "b")) == []


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("model/adapter/a.safetensors", lambda text: text[:2], "a.safetensors differs"),
        ("model/adapter/a.safetensors", None, "a.safetensors differs"),
        ("evaluation/webq-12/predictions.jsonl", lambda text: text * 2, "duplicate predictions"),
        ("evaluation/webq-12/predictions.jsonl", None, "predictions.jsonl differs"),
        ("log.jsonl", lambda text: text + text.splitlines()[0] + "\n", "other steps"),
        ("log.jsonl", lambda text: text + '{"step', "other steps"),
        ("log.jsonl", lambda text: text.partition("\n")[2], "other steps"),
        ("result.json", lambda text: text.replace("50.0", "40.0"), "other scores"),
    ],
)
def test_every_difference_is_found(tmp_path: Path, file: str, change, message: str) -> None:
    expected, found = save_runs(tmp_path / "a"), save_runs(tmp_path / "b")
    changed = found / "mini-lora-imsm-query" / file
    if change is None:
        changed.unlink()
    else:
        changed.write_text(change(changed.read_text()))
    assert any(message in line for line in differences(expected, found))


def test_an_orphan_is_found_and_killed(tmp_path: Path) -> None:
    """The command does not end its child."""
    command = [sys.executable, "-c", CHILD.format(code=BUSY)]
    kill = kill_one(command, tmp_path, after=1.0, target="launcher", grace=0.5)
    assert kill is not None and len(kill.orphans) == 1
    assert kill.code == -9
    single = kill_one([sys.executable, "-c", BUSY], tmp_path, after=0.3, target="both", grace=5)
    assert single is not None and single.orphans == [] and 0.3 <= single.cpu_seconds < 1
    assert kill_one([sys.executable, "-c", ""], tmp_path, after=20, target="both", grace=1) is None


def test_a_worker_is_found_by_its_command_line(tmp_path: Path) -> None:
    """The command exits with 1 when its worker dies."""
    code = (
        "import subprocess, sys; done = subprocess.run([sys.executable, '-c', "
        f"{BUSY!r}, 'imsm.cli.worker']); sys.exit(done.returncode < 0)"
    )
    kill = kill_one([sys.executable, "-c", code], tmp_path, after=1, target="worker", grace=5)
    assert kill is not None
    assert (kill.target, kill.orphans, kill.code) == ("worker 1 of 1", [], 1)


def test_processes_are_found_by_their_mark(tmp_path: Path) -> None:
    assert processes_of("unused mark") == []
    result = run_command([sys.executable, "-c", "print('here')"], tmp_path)
    assert (result.code, result.output) == (0, "here\n")
    assert 0 < result.cpu_seconds < 5


def test_the_phase_is_derived_from_the_files(tmp_path: Path) -> None:
    assert phase_of(tmp_path) == "starting"
    run = save_runs(tmp_path) / "mini-lora-imsm-query"
    for name in ("identity.json", "training.json"):
        (run / name).write_text("{}")
    phases = [phase_of(tmp_path)]
    for path in (run / "result.json", run / "training.json", run / "model"):
        path.rename(tmp_path / f"gone-{path.name}")
        phases.append(phase_of(tmp_path))
    assert phases == [
        "reporting",
        "evaluation, 2 tasks of both runs finished",
        "writing the model",
        "training, after step 3",
    ]


@pytest.mark.slow
def test_one_round(tmp_path: Path) -> None:
    command = [
        sys.executable, "-m", "scripts.crash_test", "--rounds", "1", "--seed", "3",
        "--engine", "single", "--folder", str(tmp_path),
        "data.max_train_examples=64", "evaluation.limit=2", "evaluation.tasks=[target]",
    ]  # fmt: skip
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "IMSM_CACHE": str(tmp_path / "cache")},
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1] == "1/1 bit-equal"
    assert [path.name for path in tmp_path.iterdir()] == ["cache"]
