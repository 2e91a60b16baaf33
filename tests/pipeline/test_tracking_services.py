"""Trackio and TensorBoard: what they receive, and that nothing is sent without the user's Space."""

from __future__ import annotations

import json
import os
import re
import sqlite3
import sys
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image

from imsm.evaluation.result import read_result
from imsm.pipeline.tracking import open_logger
from imsm.pipeline.tracking_services import BACKENDS, TrackioBackend
from tests.helpers.config import composed, config
from tests.helpers.word_run import run_words
from tests.pipeline.test_tracking import RESULT, lines, settings

REPORT = ("report/gate", "report/table_scores", "report/text")


def write_report(folder: Path) -> None:
    for name in ("report.html", "report.md", "tables/scores.csv"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("task,points\nwebq,50.0\n")
    (folder / "figures").mkdir()
    Image.new("RGB", (8, 8)).save(folder / "figures" / "gate.png")


class FakeTrackio(SimpleNamespace):
    """Records the calls of the module `trackio`; raises at one of them."""

    def __init__(self, fails: str = "") -> None:
        self.fails, self.calls = fails, []
        media = {name: lambda *given, **named: (given, named) for name in ("Image", "Table", "Markdown")}
        super().__init__(**media)

    def _record(self, event: str, value: Any) -> None:
        if event == self.fails:
            raise RuntimeError(f"{event} broke")
        self.calls.append((event, value))

    def init(self, **given: Any) -> FakeTrackio:
        self._record("init", given)
        return self

    def log(self, values: dict[str, Any], step: int | None = None) -> None:
        self._record("log", (values, step))

    def finish(self) -> None:
        self._record("finish", None)


def run_with(folder: Path, *names: str, **changed: Any) -> None:
    folder.mkdir(exist_ok=True)
    with open_logger(folder, config={"seed": 7, "api_key": "secret"}, settings=settings(*names, **changed)) as logger:
        logger.log(1, {"loss": 2.0})
        logger.finish(RESULT)
        write_report(folder)
        logger.log_report(folder)


def test_trackio_logs_to_this_machine_by_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeTrackio()
    monkeypatch.setitem(sys.modules, "trackio", fake)
    run_with(tmp_path / "run", "trackio")
    assert [event for event, _ in fake.calls] == ["init", "log", "log", "log", "finish"]
    given = fake.calls[0][1]
    assert (given["project"], given["name"], given["space_id"]) == ("imsm", "run", None)
    assert given["config"] == {"seed": 7} and not given["auto_log_gpu"] and not given["auto_log_cpu"]
    assert fake.calls[1][1] == ({"loss": 2.0}, 1)
    assert fake.calls[2][1][0]["webq/contain"] == 40.0
    assert sorted(fake.calls[3][1][0]) == sorted(REPORT)


def test_trackio_uses_a_space_only_if_it_is_named_and_the_mode_allows_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRACKIO_SPACE_ID", "me/other")
    for mode, used in (("auto", "me/space"), ("offline", None)):
        fake = FakeTrackio()
        monkeypatch.setitem(sys.modules, "trackio", fake)
        run_with(tmp_path / mode, "trackio", mode=mode, space_id="me/space")
        assert fake.calls[0][1]["space_id"] == used and fake.calls[0][1]["private"] is True
    assert "TRACKIO_SPACE_ID" not in os.environ  # which Trackio would read


@pytest.mark.parametrize("event", ["init", "log", "finish"])
def test_a_broken_trackio_never_fails_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], event: str
) -> None:
    monkeypatch.setitem(sys.modules, "trackio", FakeTrackio(fails=event))
    run_with(tmp_path / "run", "trackio")
    assert len(lines(tmp_path / "run")) == 2
    (warning,) = capsys.readouterr().err.strip().splitlines()
    assert warning.startswith("warning: logger=trackio: ") and f"{event} broke" in warning


@pytest.mark.slow
def test_the_real_trackio_keeps_metrics_and_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    trackio = pytest.importorskip("trackio", reason="needs the extra trackio, which conflicts with constraints.txt")
    run_with(tmp_path / "run", "trackio")
    (run,) = trackio.Api().runs("imsm")
    assert run.name == "run" and run.config["seed"] == 7
    (database,) = (tmp_path / "trackio").glob("imsm.db")
    with closing(sqlite3.connect(database)) as connection:
        rows = connection.execute("SELECT step, metrics FROM metrics ORDER BY step").fetchall()
    values = [(step, json.loads(metrics)) for step, metrics in rows]
    assert values[0] == (1, {"loss": 2.0}) and values[1][1]["webq/contain"] == 40.0
    assert sorted(values[2][1]) == sorted(REPORT)
    assert not any(b"secret" in path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())


def read_events(folder: Path) -> Any:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = accumulator.EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    return events


@pytest.mark.slow
def test_tensorboard_has_metrics_and_report(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="needs the extra tensorboard")
    folder = tmp_path / "run"
    run_with(folder, "tensorboard")
    events = read_events(folder)
    assert [(each.step, each.value) for each in events.Scalars("loss")] == [(1, 2.0)]
    assert [(each.step, each.value) for each in events.Scalars("webq/contain")] == [(1, 40.0)]
    assert events.Tags()["images"] == ["report/gate"]
    assert sorted(events.Tags()["tensors"]) == ["config/text_summary", "report/text_summary"]
    assert b"secret" not in b"".join(path.read_bytes() for path in (folder / "tensorboard").iterdir())


@pytest.mark.slow
def test_a_resumed_training_shows_each_step_once_in_tensorboard(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="needs the extra tensorboard")
    for first, value in ((1, 1.0), (3, 10.0)):
        with open_logger(tmp_path, config={}, settings=settings("tensorboard")) as logger:
            for step in range(first, 6):
                logger.log(step, {"loss": value * step})
    assert [(e.step, e.value) for e in read_events(tmp_path).Scalars("loss")] == [
        *((1, 1.0), (2, 2.0), (3, 30.0), (4, 40.0), (5, 50.0))
    ]


@pytest.mark.parametrize(
    ("overrides", "selected"),
    [
        ((), []),
        (("backbone=llama3",), ["wandb"]),
        (("logger=none",), []),
        (("logger=tensorboard",), ["tensorboard"]),
        (("logger=[wandb,trackio]",), ["wandb", "trackio"]),
        (("backbone=llama3", "logger=[trackio,tensorboard,wandb]"), ["trackio", "tensorboard", "wandb"]),
        (("logger=[wandb,trackio]", "logger.services.wandb=false"), ["trackio"]),
    ],
)
def test_options_of_the_group_are_combined(overrides: tuple[str, ...], selected: list[str]) -> None:
    assert config(*overrides).logger.selected() == selected


def test_shared_settings_are_equal_in_all_options() -> None:
    # of several options the last one's would apply
    shared = [dict(composed(f"logger={name}").logger) for name in ("none", "wandb", "trackio", "tensorboard")]
    for values in shared:
        for key in ("name", "services", "space_id"):
            values.pop(key, None)
    assert shared == [shared[0]] * 4


@pytest.mark.parametrize("event", ["init", "log", "finish"])
def test_a_run_finishes_when_its_trackers_fail(
    word_files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], event: str
) -> None:
    working = FakeTrackio()
    monkeypatch.setitem(sys.modules, "trackio", FakeTrackio(fails=event))
    monkeypatch.setitem(BACKENDS, "wandb", lambda *_: TrackioBackend.__new__(TrackioBackend))  # without its run
    monkeypatch.setitem(BACKENDS, "tensorboard", lambda *_: Recorder(working))
    folder = run_words(
        word_files, tmp_path, "logger=[trackio,wandb,tensorboard]", "trainer.num_epochs=1", method="peft"
    )
    assert read_result(folder)["status"] == "finished"
    # each on a line of its own, not on that of a progress bar
    warnings = [line for line in re.split(r"[\r\n]+", capsys.readouterr().err) if line.startswith("warning: ")]
    assert sorted(line.split(":")[1].strip() for line in warnings) == ["logger=trackio", "logger=wandb"]
    assert len(working.calls) == len(lines(folder)) + 2  # every line, the report, and the end


class Recorder:
    """A service that passes everything to a fake."""

    def __init__(self, fake: FakeTrackio) -> None:
        self.fake = fake

    def log(self, values: Any, step: int) -> None:
        self.fake.log(values, step)

    def log_summary(self, values: Any) -> None:
        self.fake.log(values)

    def log_report(self, folder: Path) -> None:
        self.fake.log({"report": folder})

    def close(self, *, failed: bool) -> None:
        assert not failed
        self.fake.finish()
