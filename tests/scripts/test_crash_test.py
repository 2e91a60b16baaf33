"""The script that kills runs: it must see what is left over and what differs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from scripts.crash_test import carry_out, differences, kill_one, phase_of, processes_of
from tests.helpers.paths import ROOT

CHILD = "import subprocess, sys; subprocess.run([sys.executable, '-c', {code!r}])"
BUSY = "import time; end = time.time() + 60\nwhile time.time() < end: pass"


def save_runs(root: Path, *, step: int = 3) -> Path:
    """One trained run and the original's beside it, as the command leaves them."""
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
    ("file", "change", "told"),
    [
        ("model/adapter/a.safetensors", lambda text: text[:2], "a.safetensors is not the same"),
        ("model/adapter/a.safetensors", None, "a.safetensors is not the same"),
        ("evaluation/webq-12/predictions.jsonl", lambda text: text * 2, "an item twice"),
        ("evaluation/webq-12/predictions.jsonl", None, "predictions.jsonl is not the same"),
        ("log.jsonl", lambda text: text + text.splitlines()[0] + "\n", "other steps"),
        ("log.jsonl", lambda text: text + '{"step', "other steps"),
        ("log.jsonl", lambda text: text.partition("\n")[2], "other steps"),
        ("result.json", lambda text: text.replace("50.0", "40.0"), "other scores"),
    ],
)
def test_every_difference_is_seen(tmp_path: Path, file: str, change, told: str) -> None:
    whole, parts = save_runs(tmp_path / "a"), save_runs(tmp_path / "b")
    harmed = parts / "mini-lora-imsm-query" / file
    if change is None:
        harmed.unlink()
    else:
        harmed.write_text(change(harmed.read_text()))
    assert any(told in line for line in differences(whole, parts))


def test_a_kill_finds_what_it_leaves_over(tmp_path: Path) -> None:
    """A parent that takes nobody along: its child is found, counted, and ended."""
    command = [sys.executable, "-c", CHILD.format(code=BUSY)]
    killed = kill_one(command, tmp_path, after=1.0, target="launcher", grace=0.5)
    assert killed is not None and len(killed.left_over) == 1
    assert killed.code == -9
    alone = kill_one([sys.executable, "-c", BUSY], tmp_path, after=0.3, target="both", grace=5)
    assert alone is not None and alone.left_over == [] and 0.3 <= alone.seconds < 1
    quick = [sys.executable, "-c", ""]
    assert kill_one(quick, tmp_path, after=20, target="both", grace=1) is None


def test_a_worker_is_chosen_by_its_command_line(tmp_path: Path) -> None:
    """The stand-in for a launcher ends with 1 when its worker dies."""
    code = (
        "import subprocess, sys; done = subprocess.run([sys.executable, '-c', "
        f"{BUSY!r}, 'imsm.cli.worker']); sys.exit(done.returncode < 0)"
    )
    killed = kill_one([sys.executable, "-c", code], tmp_path, after=1, target="worker", grace=5)
    assert killed is not None
    assert (killed.whom, killed.left_over, killed.code) == ("worker 1 of 1", [], 1)


def test_processes_by_their_mark(tmp_path: Path) -> None:
    assert processes_of("nobody has this one") == []
    done = carry_out([sys.executable, "-c", "print('here')"], tmp_path)
    assert (done.code, done.told) == (0, "here\n")
    assert 0 < done.computed < 5


def test_phases_are_told_from_the_files(tmp_path: Path) -> None:
    assert phase_of(tmp_path) == "starting"
    run = save_runs(tmp_path) / "mini-lora-imsm-query"
    for name in ("identity.json", "training.json"):
        (run / name).write_text("{}")
    seen = [phase_of(tmp_path)]
    for path in (run / "result.json", run / "training.json", run / "model"):
        path.rename(tmp_path / f"gone-{path.name}")
        seen.append(phase_of(tmp_path))
    assert seen == [
        "reporting",
        "evaluation, 2 tasks of both arms judged",
        "writing the model",
        "training, after step 3",
    ]


@pytest.mark.slow
def test_one_round(tmp_path: Path) -> None:
    command = [
        sys.executable, "-m", "scripts.crash_test", "--rounds", "1", "--seed", "3",
        "--engine", "local", "--folder", str(tmp_path),
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
