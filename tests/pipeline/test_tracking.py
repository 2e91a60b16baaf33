"""The local log is the truth; the mirror may fail as it likes."""

from __future__ import annotations

import json
import socket
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image

from imsm.pipeline.tracking import RunLogger, has_wandb_key, open_tracker, without_secrets

RESULT = {"evaluation": {"tasks": {"webq": {"metrics": {"contain": 40.0, "exact_match": 30.0}}}}}


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


class Recorder:
    """A mirror that remembers, and fails at what it is told to."""

    def __init__(self, fails: str = "") -> None:
        self.fails = fails
        self.seen: list[tuple[str, Any]] = []

    def _do(self, what: str, value: Any) -> None:
        if what == self.fails:
            raise ConnectionError("no network\nsecond line")
        self.seen.append((what, value))

    def log(self, values: Mapping[str, float], step: int) -> None:
        self._do("log", (step, dict(values)))

    def summarise(self, values: Mapping[str, float]) -> None:
        self._do("summary", dict(values))

    def close(self, *, failed: bool) -> None:
        self._do("end", failed)


def test_every_record_has_its_line_and_its_mirror(tmp_path: Path) -> None:
    mirror = Recorder()
    with RunLogger(tmp_path / "log.jsonl", mirror) as tracker:
        tracker.log(1, {"loss": 2.5})
        tracker.log(2, {"loss": float("nan")})
        tracker.finish(RESULT)
    first, second, last = lines(tmp_path)
    assert (first["step"], first["loss"]) == (1, 2.5)
    assert first["time"] <= second["time"]
    assert second["loss"] == "nan"
    assert (last["webq/contain"], last["webq/exact_match"]) == (40.0, 30.0)
    assert [what for what, _ in mirror.seen] == ["log", "log", "summary", "end"]
    assert mirror.seen[-1] == ("end", False)


def test_a_run_that_fails_closes_its_mirror_as_failed(tmp_path: Path) -> None:
    mirror = Recorder()
    with pytest.raises(ZeroDivisionError), RunLogger(tmp_path / "log.jsonl", mirror):
        raise ZeroDivisionError
    assert mirror.seen == [("end", True)]


@pytest.mark.parametrize("what", ["log", "summary", "end"])
def test_a_mirror_that_fails_is_one_warning(tmp_path: Path, capsys, what: str) -> None:
    with RunLogger(tmp_path / "log.jsonl", Recorder(fails=what)) as tracker:
        for step in range(3):
            tracker.log(step, {"loss": 1.0})
        tracker.finish(RESULT)
    assert len(lines(tmp_path)) == 4
    warnings = capsys.readouterr().err.strip().splitlines()
    assert len(warnings) == 1
    assert f"{what} failed (no network)" in warnings[0]


@pytest.mark.parametrize("failing", ["import", "init", "finish"])
def test_a_broken_wandb_never_ends_a_run(tmp_path: Path, monkeypatch, capsys, failing: str) -> None:
    def init(**_: Any) -> Any:
        if failing == "init":
            raise TimeoutError("timed out")

        def finish(**_: Any) -> None:
            if failing == "finish":
                raise BrokenPipeError("gone")

        return SimpleNamespace(log=lambda *_, **__: None, finish=finish, summary={})

    fake = None if failing == "import" else SimpleNamespace(init=init, Settings=dict)
    monkeypatch.setitem(sys.modules, "wandb", fake)
    with open_tracker(tmp_path, config={}, name="wandb") as tracker:
        tracker.log(1, {"loss": 1.0})
        tracker.finish(RESULT)
    assert len(lines(tmp_path)) == 2
    assert capsys.readouterr().err.count("warning: tracker") == 1


def test_without_a_tracker_nothing_is_imported(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with open_tracker(tmp_path, config={}, name="none") as tracker:
        tracker.log(1, {"loss": 1.0})
    assert len(lines(tmp_path)) == 1


def test_offline_without_a_key(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    assert not has_wandb_key()
    (tmp_path / "netrc").write_text("machine api.wandb.ai login user password abc\n")
    assert has_wandb_key()
    (tmp_path / "netrc").write_text("machine elsewhere login user password abc\n")
    assert not has_wandb_key()
    monkeypatch.setenv("WANDB_API_KEY", "abc")
    assert has_wandb_key()


def test_secrets_are_not_shown() -> None:
    shown = without_secrets({"api_key": 1, "hub": {"token": 2, "path": "x"}, "max_prompt_tokens": 5, "keys": 6})
    assert shown == {"hub": {"path": "x"}, "max_prompt_tokens": 5, "keys": 6}


@pytest.mark.slow
def test_a_real_offline_run(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("IMSM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("IMSM_SWEEP_DIR", "/somewhere/sweep-1")
    for place in ("WANDB_DATA_DIR", "WANDB_CACHE_DIR"):
        monkeypatch.delenv(place, raising=False)
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "run"
    folder.mkdir()
    values = {"api_key": "do-not-show", "seed": 7}
    with open_tracker(folder, config=values, name="wandb", project="imsm") as tracker:
        assert tracker.mirror is not None
        tracker.log(1, {"loss": 2.0})
        tracker.finish(RESULT)
        for name in ("report.html", "report.md", "tables/scores.csv"):
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_text("task,points\nwebq,50.0\n")
        (folder / "figures").mkdir()
        Image.new("RGB", (8, 8)).save(folder / "figures" / "gate.png")
        tracker.attach(folder)
    assert "warning" not in capsys.readouterr().err
    (written,) = folder.glob("wandb/offline-run-*/*.wandb")
    deadline = time.monotonic() + 20  # a process of wandb's writes the file
    while b"webq/contain" not in (content := written.read_bytes()):
        assert time.monotonic() < deadline, content
        time.sleep(0.1)
    assert b"do-not-show" not in content
    for shown in (b"report-run", b"report/gate", b"report/table_scores", b"report/page", b"sweep-1"):
        assert shown in content, shown
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cache", "run"]
    assert len(lines(folder)) == 2


def test_a_training_that_goes_on_logs_each_step_once(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    first = RunLogger(log)
    for step in range(1, 6):
        first.log(step, {"loss": float(step)})
    log.write_text(log.read_text() + '{"step": 6, "lo')  # a crash in the middle of a line
    going_on = RunLogger(log)
    for step in range(4, 8):  # after the checkpoint of step 3
        going_on.log(step, {"loss": 10.0 * step})
    assert [line["step"] for line in lines(tmp_path)] == [1, 2, 3, 4, 5, 6, 7]
    assert [line["loss"] for line in lines(tmp_path)] == [1.0, 2.0, 3.0, 40.0, 50.0, 60.0, 70.0]


def test_half_a_line_of_a_finished_training_is_dropped(tmp_path: Path) -> None:
    """No step follows that would take it out."""
    log = tmp_path / "log.jsonl"
    log.write_text('{"step": 1, "loss": 2.0}\n{"step": null, "webq/con')
    RunLogger(log).finish(RESULT)
    assert [line["step"] for line in lines(tmp_path)] == [1, None]


@pytest.mark.slow
def test_a_wandb_that_cannot_be_reached_is_one_warning(tmp_path: Path, monkeypatch, capsys) -> None:
    with socket.socket() as nobody:  # a port at which nothing listens
        nobody.bind(("127.0.0.1", 0))
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{nobody.getsockname()[1]}")
        monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
        started = time.monotonic()
        with open_tracker(tmp_path, config={}, name="wandb", project="imsm", mode="online", init_timeout=3) as tracker:
            assert tracker.mirror is None
            tracker.log(1, {"loss": 1.0})
            tracker.finish(RESULT)
    assert time.monotonic() - started < 60
    told = [line for line in capsys.readouterr().err.splitlines() if "warning" in line]
    assert len(told) == 1
    assert told[0].startswith("warning: tracker: start failed (") and "log.jsonl alone" in told[0]
    assert len(lines(tmp_path)) == 2
