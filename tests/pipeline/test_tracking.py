"""log.jsonl is always written; a backend that fails is one warning."""

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

from imsm.config.schema import LoggerConfig
from imsm.pipeline.tracking import RunLogger, open_logger, score_changes, without_secrets
from imsm.pipeline.tracking_services import BACKENDS, has_wandb_key
from imsm.utils.errors import file_error

RESULT = {
    "evaluation": {
        "tasks": {
            "webq": {"role": "forgetting", "headline": "contain", "metrics": {"contain": 40.0, "exact_match": 30.0}}
        }
    }
}


def settings(*names: str, **changed: Any) -> LoggerConfig:
    """The section `logger` of a run with these services."""
    values = {"project": "imsm", "entity": None, "mode": "auto", "init_timeout": 30.0} | changed
    return LoggerConfig(name=[*names, "none"][0], services=dict.fromkeys(names, True), **values)


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


class RecordingBackend:
    """A backend that records its calls, and raises at one of them."""

    def __init__(self, fails: str = "") -> None:
        self.fails = fails
        self.calls: list[tuple[str, Any]] = []

    def _record(self, event: str, value: Any) -> None:
        if event == self.fails:
            raise ConnectionError("no network\nsecond line")
        self.calls.append((event, value))

    def log(self, values: Mapping[str, float], step: int) -> None:
        self._record("log", (step, dict(values)))

    def log_summary(self, values: Mapping[str, float]) -> None:
        self._record("summary", dict(values))

    def close(self, *, failed: bool) -> None:
        self._record("end", failed)


def test_every_record_is_written_and_forwarded(tmp_path: Path) -> None:
    backend = RecordingBackend()
    with RunLogger(tmp_path / "log.jsonl", {"service": backend}) as logger:
        logger.log(1, {"loss": 2.5})
        logger.log(2, {"loss": float("nan")})
        logger.finish(RESULT)
    first, second, last = lines(tmp_path)
    assert (first["step"], first["loss"]) == (1, 2.5)
    assert first["time"] <= second["time"]
    assert second["loss"] == "nan"
    assert (last["webq/contain"], last["webq/exact_match"]) == (40.0, 30.0)
    assert [event for event, _ in backend.calls] == ["log", "log", "summary", "end"]
    assert backend.calls[-1] == ("end", False)


def test_a_failed_run_closes_the_backend_as_failed(tmp_path: Path) -> None:
    backend = RecordingBackend()
    with pytest.raises(ZeroDivisionError), RunLogger(tmp_path / "log.jsonl", {"service": backend}):
        raise ZeroDivisionError
    assert backend.calls == [("end", True)]


@pytest.mark.parametrize("event", ["log", "summary", "end"])
def test_a_failing_backend_is_one_warning(tmp_path: Path, capsys, event: str) -> None:
    with RunLogger(tmp_path / "log.jsonl", {"service": RecordingBackend(fails=event)}) as logger:
        for step in range(3):
            logger.log(step, {"loss": 1.0})
        logger.finish(RESULT)
    assert len(lines(tmp_path)) == 4
    warnings = capsys.readouterr().err.strip().splitlines()
    assert len(warnings) == 1
    assert f"{event} failed (no network)" in warnings[0]


@pytest.mark.parametrize("event", ["log", "summary", "end"])
def test_a_failing_service_leaves_the_others(tmp_path: Path, capsys, event: str) -> None:
    broken, other = RecordingBackend(fails=event), RecordingBackend()
    with RunLogger(tmp_path / "log.jsonl", {"broken": broken, "other": other}) as logger:
        logger.log(1, {"loss": 1.0})
        logger.finish(RESULT)
    assert [event for event, _ in other.calls] == ["log", "summary", "end"]
    (warning,) = capsys.readouterr().err.strip().splitlines()
    assert warning.startswith(f"warning: logger=broken: {event} failed (no network)")


def test_a_service_that_does_not_start_leaves_the_others(tmp_path: Path, monkeypatch, capsys) -> None:
    def fail(*_: Any) -> Any:
        raise ModuleNotFoundError("No module named 'trackio'", name="trackio")

    other = RecordingBackend()
    monkeypatch.setitem(BACKENDS, "trackio", fail)
    monkeypatch.setitem(BACKENDS, "wandb", lambda *_: other)
    with open_logger(tmp_path, config={}, settings=settings("trackio", "wandb")) as logger:
        logger.log(1, {"loss": 1.0})
    assert [event for event, _ in other.calls] == ["log", "end"]
    (warning,) = capsys.readouterr().err.strip().splitlines()
    assert "logger=trackio: start failed (No module named 'trackio'; pip install trackio)" in warning


@pytest.mark.parametrize("failing", ["import", "init", "finish"])
def test_a_broken_wandb_never_fails_a_run(tmp_path: Path, monkeypatch, capsys, failing: str) -> None:
    def init(**_: Any) -> Any:
        if failing == "init":
            raise TimeoutError("timed out")

        def finish(**_: Any) -> None:
            if failing == "finish":
                raise BrokenPipeError("gone")

        return SimpleNamespace(log=lambda *_, **__: None, finish=finish, summary={})

    fake = None if failing == "import" else SimpleNamespace(init=init, Settings=dict)
    monkeypatch.setitem(sys.modules, "wandb", fake)
    with open_logger(tmp_path, config={}, settings=settings("wandb")) as logger:
        logger.log(1, {"loss": 1.0})
        logger.finish(RESULT)
    assert len(lines(tmp_path)) == 2
    assert capsys.readouterr().err.count("warning: logger=wandb: ") == 1


def test_without_a_backend_wandb_is_not_imported(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with open_logger(tmp_path, config={}, settings=settings()) as logger:
        logger.log(1, {"loss": 1.0})
    assert len(lines(tmp_path)) == 1


def test_the_wandb_key_is_found_in_environment_and_netrc(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    assert not has_wandb_key()
    (tmp_path / "netrc").write_text("machine api.wandb.ai login user password abc\n")
    assert has_wandb_key()
    (tmp_path / "netrc").write_text("machine elsewhere login user password abc\n")
    assert not has_wandb_key()
    monkeypatch.setenv("WANDB_API_KEY", "abc")
    assert has_wandb_key()


def test_secrets_are_removed_from_the_configuration() -> None:
    shown = without_secrets({"api_key": 1, "hub": {"token": 2, "path": "x"}, "max_prompt_tokens": 5, "keys": 6})
    assert shown == {"hub": {"path": "x"}, "max_prompt_tokens": 5, "keys": 6}


def test_the_summary_has_the_changes_by_training_and_the_averages() -> None:
    def entry(role: str, points: float) -> dict[str, Any]:
        return {"role": role, "headline": "contain", "metrics": {"contain": points, "f1": 1.0}}

    tasks = {"gsm8k": entry("target", 90.0), "webq": entry("forgetting", 60.0), "mrpc": entry("forgetting", 40.0)}
    original = {"gsm8k": entry("target", 10.0), "webq": entry("forgetting", 95.0), "mrpc": entry("forgetting", 45.0)}

    changes = score_changes({"evaluation": {"tasks": tasks, "original": original}})

    assert changes == {
        "change/gsm8k": 80.0,
        "change/webq": -35.0,
        "change/mrpc": -5.0,
        "average/forgetting": 50.0,
        "average/change": -20.0,
    }
    assert score_changes({"evaluation": {"tasks": tasks}}) == {"average/forgetting": 50.0}
    # an original that lacks a test has no average change
    del original["mrpc"]
    assert "average/change" not in score_changes({"evaluation": {"tasks": tasks, "original": original}})


@pytest.mark.slow
def test_a_real_offline_run_uploads_metrics_and_report(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("IMSM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("IMSM_SWEEP_GROUP", "sweep-1")
    for variable in ("WANDB_DATA_DIR", "WANDB_CACHE_DIR"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "run"
    folder.mkdir()
    values = {"api_key": "do-not-show", "seed": 7}
    with open_logger(folder, config=values, settings=settings("wandb")) as logger:
        assert list(logger.backends) == ["wandb"]
        logger.log(1, {"loss": 2.0})
        logger.finish(RESULT)
        for name in ("report.html", "report.md", "tables/scores.csv"):
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_text("task,points\nwebq,50.0\n")
        (folder / "figures").mkdir()
        Image.new("RGB", (8, 8)).save(folder / "figures" / "gate.png")
        logger.log_report(folder)
    assert "warning" not in capsys.readouterr().err
    (written,) = folder.glob("wandb/offline-run-*/*.wandb")
    deadline = time.monotonic() + 20  # written by a wandb process
    while b"webq/contain" not in (content := written.read_bytes()):
        assert time.monotonic() < deadline, content
        time.sleep(0.1)
    assert b"do-not-show" not in content
    for text in (b"report-run", b"report/gate", b"report/table_scores", b"report/page", b"sweep-1"):
        assert text in content, text
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cache", "run"]
    assert len(lines(folder)) == 2


def test_a_resumed_training_logs_each_step_once(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    first = RunLogger(log)
    for step in range(1, 6):
        first.log(step, {"loss": float(step)})
    log.write_text(log.read_text() + '{"step": 6, "lo')  # a crash in the middle of a line
    resumed = RunLogger(log)
    for step in range(4, 8):  # after the checkpoint of step 3
        resumed.log(step, {"loss": 10.0 * step})
    assert [line["step"] for line in lines(tmp_path)] == [1, 2, 3, 4, 5, 6, 7]
    assert [line["loss"] for line in lines(tmp_path)] == [1.0, 2.0, 3.0, 40.0, 50.0, 60.0, 70.0]


def test_an_incomplete_last_line_is_dropped(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    log.write_text('{"step": 1, "loss": 2.0}\n{"step": null, "webq/con')
    RunLogger(log).finish(RESULT)
    assert [line["step"] for line in lines(tmp_path)] == [1, None]


@pytest.mark.slow
def test_an_unreachable_wandb_is_one_warning(tmp_path: Path, monkeypatch, capsys) -> None:
    with socket.socket() as closed:  # a port without a listener
        closed.bind(("127.0.0.1", 0))
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{closed.getsockname()[1]}")
        monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
        started = time.monotonic()
        with open_logger(tmp_path, config={}, settings=settings("wandb", mode="online", init_timeout=3.0)) as logger:
            assert logger.backends == {}
            logger.log(1, {"loss": 1.0})
            logger.finish(RESULT)
    assert time.monotonic() - started < 60
    warnings = [line for line in capsys.readouterr().err.splitlines() if "warning" in line]
    assert len(warnings) == 1
    assert warnings[0].startswith("warning: logger=wandb: start failed (") and "log.jsonl is complete" in warnings[0]
    assert len(lines(tmp_path)) == 2


def test_a_log_with_damaged_lines_is_continued(tmp_path: Path) -> None:
    nested = b'{"step": ' + b"[" * 100_000
    (tmp_path / "log.jsonl").write_bytes(b'{"step": 1, "loss": 2.0}\n\xff\xfe\n[]\n' + nested + b"\nhalf")
    with open_logger(tmp_path, config={}, settings=settings()) as logger:
        logger.log(2, {"loss": 1.0})
    assert [row["step"] for row in lines(tmp_path)] == [1, 2]


def test_a_folder_in_the_place_of_the_log_is_an_error_that_names_it(tmp_path: Path) -> None:
    (tmp_path / "log.jsonl").mkdir()
    with open_logger(tmp_path, config={}, settings=settings()) as logger, pytest.raises(OSError) as caught:
        logger.log(1, {"loss": 1.0})
    assert str(tmp_path / "log.jsonl") in str(file_error(caught.value))
