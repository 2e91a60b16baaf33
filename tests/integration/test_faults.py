"""What a cluster does to a run: a full disk, damaged files, a second run in the folder, a kill.

Each has its message, what was finished is kept, and the same command goes on to the same end.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from imsm.pipeline.run import run_experiment
from imsm.training import trainer as loop
from imsm.utils.errors import UserError
from scripts.crash_test import differences
from tests.helpers.config import config
from tests.helpers.paths import ROOT
from tests.pipeline.test_run import choices, made, run  # noqa: F401 (a fixture)
from tests.training.test_resume import flipped, missing, truncated

OFTEN = ("trainer.save_steps=1", "trainer.num_epochs=2")
STEPS = 4


@pytest.fixture(scope="module")
def whole(made: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:  # noqa: F811
    """The runs of a command that nothing disturbed."""
    root = tmp_path_factory.mktemp("whole")
    run(made, root, *OFTEN)
    return root


@contextmanager
def full_disk(size: int) -> Iterator[None]:
    """No file can grow beyond ``size`` bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def full_at(monkeypatch: pytest.MonkeyPatch, place: str, *, call: int, size: int) -> None:
    """Let the disk be full while the function at ``place`` is called for that many-th time."""
    calls = 0

    def wrapped(*arguments: Any, **named: Any) -> Any:
        nonlocal calls
        calls += 1
        with full_disk(size) if calls == call else full_disk(resource.RLIM_INFINITY):
            return original(*arguments, **named)

    owner, _, name = place.rpartition(".")
    original = getattr(_located(owner), name)
    monkeypatch.setattr(f"{owner}.{name}", wrapped)


def _located(dotted: str) -> Any:
    import pkgutil

    return pkgutil.resolve_name(dotted)


MODEL = "imsm.models.siamese.model.SiameseForCausalLM.save_pretrained"


@pytest.mark.parametrize(
    ("place", "call", "size", "trained"),
    [
        ("imsm.pipeline.run.open_run_dir", 1, 10, False),
        ("imsm.pipeline.run.check_input_hashes", 1, 10, False),
        ("imsm.training.checkpoint_manager.save_checkpoint", 1, 2000, False),
        ("imsm.training.checkpoint_manager.save_checkpoint", 3, 2000, False),
        ("imsm.pipeline.tracking.Tracker.log", 2, 250, False),
        (MODEL, 1, 2000, False),
        ("imsm.pipeline.train.write_atomic", 1, 10, False),
        ("imsm.evaluation.response_cache.Ledger.append", 1, 50, True),
        ("imsm.evaluation.response_cache.Ledger.append", 2, 700, True),
        ("imsm.evaluation.evaluator.write_items", 2, 50, True),
        ("imsm.pipeline.evaluate.write_result", 1, 500, True),
        ("imsm.reporting.report.write_atomic", 1, 50, True),
        ("imsm.pipeline.tracking.Tracker.finish", 1, 10, True),
    ],
)
def test_a_full_disk_ends_a_run_and_the_same_command_goes_on(
    made: Path,  # noqa: F811
    whole: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    place: str,
    call: int,
    size: int,
    trained: bool,
) -> None:
    with monkeypatch.context() as patch:
        full_at(patch, place, call=call, size=size)
        with pytest.raises(UserError, match=r"[Ff]ree some space|cannot be written") as caught:
            run(made, tmp_path, *OFTEN)
    assert "\n" not in str(caught.value)
    folder = next(tmp_path.glob("*-imsm-*"))
    assert (folder / "training.json").is_file() == trained
    if "save_checkpoint" in place:
        kept = [path.name for path in (folder / "checkpoints").glob("*")]
        assert sorted(kept) == [f"step-{step:08d}" for step in range(1, call)]
        assert ("there is none" if call == 1 else "are kept in") in str(caught.value)
    steps = count_steps(monkeypatch)
    run(made, tmp_path, *OFTEN)
    assert len(steps) < STEPS or not (trained or call > 1 or place == MODEL)
    assert differences(whole, tmp_path) == []


def count_steps(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The steps that are trained from now on."""
    steps: list[int] = []
    original = loop.train_step

    def counting(*arguments: Any, **named: Any) -> Any:
        steps.append(named["step"])
        return original(*arguments, **named)

    monkeypatch.setattr(loop, "train_step", counting)
    return steps


def stop_at(made: Path, root: Path, monkeypatch: pytest.MonkeyPatch, step: int) -> Path:  # noqa: F811
    """A run that was stopped by hand after a step; returns its folder."""
    original = loop.train_step

    def stopping(*arguments: Any, **named: Any) -> Any:
        if named["step"] == step:
            os.kill(os.getpid(), signal.SIGINT)
        return original(*arguments, **named)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "train_step", stopping)
        with pytest.raises(KeyboardInterrupt):
            run(made, root, *OFTEN)
    return next(root.glob("*-imsm-*"))


@pytest.mark.parametrize("harm", [truncated, flipped, missing])
def test_every_file_of_a_checkpoint_may_be_damaged(
    made: Path,  # noqa: F811
    whole: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    harm: Callable[[Path], None],
) -> None:
    folder = stop_at(made, tmp_path / "runs", monkeypatch, 3)
    shutil.copytree(tmp_path / "runs", tmp_path / "kept")
    newest = max((folder / "checkpoints").glob("step-*"))
    names = sorted(str(file.relative_to(newest)) for file in newest.rglob("*") if file.is_file())
    assert len(names) >= 5
    for name in names:
        shutil.rmtree(tmp_path / "runs")
        shutil.copytree(tmp_path / "kept", tmp_path / "runs")
        harm(newest / name)
        capsys.readouterr()
        run(made, tmp_path / "runs", *OFTEN)
        told = capsys.readouterr().err
        assert f"warning: checkpoint {newest}: " in told and name in told
        assert "trying the one before" in told and "going on after step 2 of 4" in told
        assert differences(whole, tmp_path / "runs") == [], name


def test_no_whole_checkpoint_is_an_error_and_never_trains_anew(
    made: Path,  # noqa: F811
    whole: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = stop_at(made, tmp_path, monkeypatch, 3)
    for file in (folder / "checkpoints").glob("*/trainables.safetensors"):
        truncated(file)
    with pytest.raises(UserError, match=r"none of its checkpoints is whole; give resume=never"):
        run(made, tmp_path, *OFTEN)
    run(made, tmp_path, *OFTEN, "resume=never")
    assert differences(whole, tmp_path) == []


@contextmanager
def working_in(folder: Path, *, seconds: int) -> Iterator[subprocess.Popen[str]]:
    """Another process that is at work in a run's folder."""
    holding = "import sys, time; from pathlib import Path; from imsm.utils.files import file_lock\n"
    holding += "with file_lock(Path(sys.argv[1])): print('mine'); sys.stdout.flush(); "
    holding += f"time.sleep({seconds})"
    line = [sys.executable, "-c", holding, str(folder)]
    with subprocess.Popen(line, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None and other.stdout.readline() == "mine\n"
        try:
            yield other
        finally:
            other.kill()


def test_two_runs_in_one_folder_at_once(made: Path, tmp_path: Path) -> None:  # noqa: F811
    mine = tmp_path / "mine"
    chosen = config(*choices(made, *OFTEN, f"run_dir={mine}"))
    with working_in(mine, seconds=120):
        with pytest.raises(UserError, match=r"another process is using this run") as caught:
            run_experiment(chosen, runs_root=tmp_path)
        assert str(mine) in str(caught.value) and "\n" not in str(caught.value)
        assert not (mine / "identity.json").exists()
    run_experiment(chosen, runs_root=tmp_path)  # the lock went with the killed process
    assert json.loads((mine / "result.json").read_text())["status"] == "finished"


def test_two_arms_that_need_the_same_original_wait_for_each_other(
    made: Path,  # noqa: F811
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The original's folder belongs to several runs: there one waits in place of giving up."""
    original = run(made, tmp_path, *OFTEN, method="original")
    with working_in(original, seconds=8) as other:
        run(made, tmp_path, *OFTEN, method="peft")
        assert other.poll() == 0
    assert f"waiting for another process that uses {original}" in capsys.readouterr().err


@pytest.mark.slow
def test_killed_before_a_write_a_run_goes_on_to_the_same_end(
    made: Path,  # noqa: F811
    tmp_path: Path,
) -> None:
    """Every one of them: `python -m tests.helpers.crash_at_write FOLDER 1 ...`, in minutes."""
    line = [sys.executable, "-m", "tests.helpers.crash_at_write", str(tmp_path), "13"]
    done = subprocess.run(
        [*line, *choices(made, *OFTEN, "trainer.save_total_limit=2")],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert int(done.stdout.split("/")[0]) >= 6
