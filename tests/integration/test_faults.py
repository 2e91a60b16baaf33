"""Faults: a full disk, damaged files, two processes in one run folder, a kill.

Each has its own message; finished steps are kept, and the same command resumes to the same result.
"""

from __future__ import annotations

import errno
import json
import pkgutil
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from imsm.pipeline.run import run_experiment
from imsm.utils.errors import UserError
from scripts.crash_test import differences
from tests.helpers.config import config
from tests.helpers.damage import delete, flip_bit, truncate
from tests.helpers.paths import ROOT
from tests.helpers.word_run import interrupt_at, run_words, word_overrides

SAVE_OFTEN = ("trainer.save_steps=1", "trainer.num_epochs=2")
STEPS = 4


@pytest.fixture(scope="module")
def undisturbed(word_files: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The runs folder of a command without faults."""
    root = tmp_path_factory.mktemp("undisturbed")
    run_words(word_files, root, *SAVE_OFTEN)
    return root


@contextmanager
def full_disk(size: int) -> Iterator[None]:
    """Limit every file to ``size`` bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def full_at(monkeypatch: pytest.MonkeyPatch, function: str, *, call: int, size: int) -> None:
    """Limit files to ``size`` bytes during the ``call``-th call of a function, given by its dotted name."""
    calls = 0
    owner, _, name = function.rpartition(".")
    original = getattr(pkgutil.resolve_name(owner), name)

    def wrapped(*arguments: Any, **keywords: Any) -> Any:
        nonlocal calls
        calls += 1
        with full_disk(size) if calls == call else full_disk(resource.RLIM_INFINITY):
            return original(*arguments, **keywords)

    monkeypatch.setattr(function, wrapped)


MODEL = "imsm.models.siamese.model.SiameseForCausalLM.save_pretrained"


@pytest.mark.parametrize(
    ("function", "call", "size", "trained"),
    [
        ("imsm.pipeline.run.open_run_dir", 1, 10, False),
        ("imsm.pipeline.run.check_input_hashes", 1, 10, False),
        ("imsm.training.checkpoint_manager.save_checkpoint", 1, 2000, False),
        ("imsm.training.checkpoint_manager.save_checkpoint", 3, 2000, False),
        ("imsm.pipeline.tracking.RunLogger.log", 2, 250, False),
        (MODEL, 1, 2000, False),
        ("imsm.pipeline.train.write_manifest", 1, 10, False),
        ("imsm.pipeline.train.write_hashed_json", 1, 10, False),
        ("imsm.evaluation.response_cache.ResponseCache.append", 1, 50, True),
        ("imsm.evaluation.response_cache.ResponseCache.append", 2, 700, True),
        ("imsm.evaluation.evaluator.write_predictions", 2, 50, True),
        ("imsm.pipeline.evaluate.write_result", 1, 500, True),
    ],
)
def test_after_a_full_disk_the_same_command_resumes(
    word_files: Path,
    undisturbed: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    function: str,
    call: int,
    size: int,
    trained: bool,
) -> None:
    with monkeypatch.context() as patch:
        full_at(patch, function, call=call, size=size)
        with pytest.raises(UserError, match=r"[Ff]ree some space|cannot be written") as caught:
            run_words(word_files, tmp_path, *SAVE_OFTEN)
    assert "\n" not in str(caught.value)
    folder = next(tmp_path.glob("*-imsm-*"))
    assert (folder / "training.json").is_file() == trained
    if "save_checkpoint" in function:
        names = [path.name for path in (folder / "checkpoints").glob("*")]
        assert sorted(names) == [f"step-{step:08d}" for step in range(1, call)]
        assert ("there is none" if call == 1 else "are kept in") in str(caught.value)
    steps = interrupt_at(monkeypatch, 0)  # never: only records the steps
    run_words(word_files, tmp_path, *SAVE_OFTEN)
    assert len(steps) < STEPS or not (trained or call > 1 or function == MODEL)
    assert differences(undisturbed, tmp_path) == []


@pytest.mark.parametrize("function", ["imsm.reporting.report.write_report", "imsm.pipeline.tracking.RunLogger.finish"])
@pytest.mark.parametrize(
    "error",
    [OSError(errno.ENOSPC, "No space left on device"), UnicodeEncodeError("ascii", "−", 0, 1, "no"), KeyError("x")],
)
def test_a_finished_run_is_not_failed_by_its_report_or_log(
    word_files: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    function: str,
    error: Exception,
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(function, fail)
        folder = run_words(word_files, tmp_path, method="original")
    assert (folder / "result.json").is_file()
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "warning" in line]
    assert line.startswith("imsm: warning: the run is finished") and f"imsm report {folder}" in line


def interrupt_run(word_files: Path, root: Path, monkeypatch: pytest.MonkeyPatch, step: int) -> Path:
    """Interrupt a run at a step; return its folder."""
    with monkeypatch.context() as patch:
        interrupt_at(patch, step)
        with pytest.raises(KeyboardInterrupt):
            run_words(word_files, root, *SAVE_OFTEN)
    return next(root.glob("*-imsm-*"))


@pytest.mark.parametrize("harm", [truncate, flip_bit, delete])
def test_a_checkpoint_with_any_damaged_file_is_skipped(
    word_files: Path,
    undisturbed: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    harm: Callable[[Path], None],
) -> None:
    folder = interrupt_run(word_files, tmp_path / "runs", monkeypatch, 3)
    shutil.copytree(tmp_path / "runs", tmp_path / "kept")
    newest = max((folder / "checkpoints").glob("step-*"))
    names = sorted(str(file.relative_to(newest)) for file in newest.rglob("*") if file.is_file())
    assert len(names) >= 5
    for name in names:
        shutil.rmtree(tmp_path / "runs")
        shutil.copytree(tmp_path / "kept", tmp_path / "runs")
        harm(newest / name)
        capsys.readouterr()
        run_words(word_files, tmp_path / "runs", *SAVE_OFTEN)
        errors = capsys.readouterr().err
        assert f"warning: checkpoint {newest}: " in errors and name in errors
        assert "trying the previous one" in errors and "resuming after step 2 of 4" in errors
        assert differences(undisturbed, tmp_path / "runs") == [], name


def test_without_an_intact_checkpoint_a_run_fails_unless_resume_is_never(
    word_files: Path, undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = interrupt_run(word_files, tmp_path, monkeypatch, 3)
    for file in (folder / "checkpoints").glob("*/trainables.safetensors"):
        truncate(file)
    with pytest.raises(UserError, match=r"all checkpoints are damaged; use resume=never"):
        run_words(word_files, tmp_path, *SAVE_OFTEN)
    run_words(word_files, tmp_path, *SAVE_OFTEN, "resume=never")
    assert differences(undisturbed, tmp_path) == []


@contextmanager
def another_process(folder: Path, *, seconds: int) -> Iterator[subprocess.Popen[str]]:
    """Start another process that holds the lock of a run folder."""
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


def test_a_second_process_in_a_run_folder_is_rejected(word_files: Path, tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    run_config = config(*word_overrides(word_files, *SAVE_OFTEN, f"run_dir={mine}"))
    with another_process(mine, seconds=120):
        with pytest.raises(UserError, match=r"another process is using this run") as caught:
            run_experiment(run_config, runs_root=tmp_path)
        assert str(mine) in str(caught.value) and "\n" not in str(caught.value)
        assert not (mine / "identity.json").exists()
    run_experiment(run_config, runs_root=tmp_path)  # the lock went with the killed process
    assert json.loads((mine / "result.json").read_text())["status"] == "finished"


def test_runs_that_share_the_original_wait_for_each_other(
    word_files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    original = run_words(word_files, tmp_path, *SAVE_OFTEN, method="original")
    with another_process(original, seconds=8) as other:
        run_words(word_files, tmp_path, *SAVE_OFTEN, method="peft")
        assert other.poll() == 0
    assert f"waiting for another process that uses {original}" in capsys.readouterr().err


@pytest.mark.slow
def test_a_run_killed_before_any_write_resumes_to_the_same_result(word_files: Path, tmp_path: Path) -> None:
    """Every 13th write; all of them take minutes: `python -m tests.helpers.crash_at_write FOLDER 1 ...`."""
    line = [sys.executable, "-m", "tests.helpers.crash_at_write", str(tmp_path), "13"]
    done = subprocess.run(
        [*line, *word_overrides(word_files, *SAVE_OFTEN, "trainer.save_total_limit=2")],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert int(done.stdout.split("/")[0]) >= 6
