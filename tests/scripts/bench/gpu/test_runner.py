"""Rows that fail, hang, lack memory or end the process do not lose others."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import scripts.bench.gpu.runner as runner
from scripts.bench.gpu.rows import Row
from scripts.bench.gpu.runner import Record, measure_rows
from scripts.bench.gpu.session import Session


@pytest.fixture(autouse=True)
def quick_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first rows do nothing."""
    monkeypatch.setattr(runner, "MACHINE", Row("machine", 5, lambda _: {}))
    monkeypatch.setattr(runner, "BUILD", Row("build", 5, lambda _: {}))


def record_of(folder: Path, session: Session, **settings: Any) -> Record:
    return Record(folder / "it.json", session=session, settings=settings, commit=None)


def written(folder: Path) -> dict[str, Any]:
    rows: dict[str, Any] = json.loads((folder / "it.json").read_text())["rows"]
    return rows


def failing(error: Exception) -> Callable[[Session], dict[str, Any]]:
    def measure(_: Session) -> dict[str, Any]:
        raise error

    return measure


def hang(_: Session) -> dict[str, Any]:
    time.sleep(30)
    return {}


def test_a_failed_row_does_not_stop_the_others(tmp_path: Path, session: Session) -> None:
    seen: list[dict[str, Any]] = []

    def look(_: Session) -> dict[str, Any]:
        seen.append(written(tmp_path))
        return {"ms": 1.0}

    rows = [
        Row("memory", 5, failing(torch.OutOfMemoryError("CUDA out of memory"))),
        Row("package", 5, failing(ModuleNotFoundError("No module named 'trl'", name="trl"))),
        Row("hanging", 1, hang),
        Row("last", 5, look),
    ]
    assert measure_rows(record_of(tmp_path, session), session, rows, seconds=60) == []
    found = written(tmp_path)
    assert found["memory"]["error"] == "OutOfMemoryError: CUDA out of memory" and "trace" in found["memory"]
    assert found["package"]["needs"] == "trl"
    assert found["hanging"]["error"] == "RowTimeoutError: more than 1 s"
    assert found["last"] == {"ms": 1.0, "seconds": found["last"]["seconds"]}
    # the file has the rows before, and the row itself should the process end in it
    assert seen[0].keys() == found.keys() and seen[0]["last"]["error"] == "the process ended in this row"
    assert [path.name for path in tmp_path.iterdir()] == ["it.json"]


def test_a_second_call_measures_what_is_missing_new_rows_first(tmp_path: Path, session: Session) -> None:
    calls: list[str] = []

    def row(name: str, error: Exception | None = None) -> Row:
        def measure(_: Session) -> dict[str, Any]:
            calls.append(name)
            if error is not None:
                raise error
            return {"ms": 1.0}

        return Row(name, 5, measure)

    first = [row("good"), row("bad", RuntimeError("no"))]
    measure_rows(record_of(tmp_path, session), session, first, seconds=60)
    measure_rows(record_of(tmp_path, session), session, [row("good"), row("bad"), row("new")], seconds=60)
    assert calls == ["good", "bad", "new", "bad"]
    assert all("error" not in found for found in written(tmp_path).values())


def test_a_row_that_ends_the_process_is_tried_last_and_not_a_third_time(tmp_path: Path, session: Session) -> None:
    def end(_: Session) -> dict[str, Any]:
        raise KeyboardInterrupt  # not caught, so that the file is as after a crash

    rows = [Row("crash", 5, end), Row("other", 5, lambda _: {"ms": 1.0})]
    with pytest.raises(KeyboardInterrupt):
        measure_rows(record_of(tmp_path, session), session, rows, seconds=60)
    assert written(tmp_path)["crash"] == {"error": "the process ended in this row", "ended": 1}
    with pytest.raises(KeyboardInterrupt):
        measure_rows(record_of(tmp_path, session), session, rows, seconds=60)
    assert written(tmp_path)["other"]["ms"] == 1.0 and written(tmp_path)["crash"]["ended"] == 2
    measure_rows(record_of(tmp_path, session), session, rows, seconds=60)


def test_rows_without_time_are_returned(tmp_path: Path, session: Session) -> None:
    rows = [Row("one", 5, lambda _: {}), Row("two", 5, lambda _: {})]
    assert measure_rows(record_of(tmp_path, session), session, rows, seconds=1) == ["one", "two"]


def test_without_a_model_no_row_is_tried(tmp_path: Path, session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "BUILD", Row("build", 5, failing(RuntimeError("out of memory"))))
    assert measure_rows(record_of(tmp_path, session), session, [Row("one", 5, lambda _: {})], seconds=60) == []
    assert written(tmp_path).keys() == {"machine", "build"}


def test_a_file_of_other_settings_is_kept(tmp_path: Path, session: Session) -> None:
    record_of(tmp_path, session, tiny=True).write("row", {"ms": 1.0})
    before = (tmp_path / "it.json").read_bytes()
    assert record_of(tmp_path, session, tiny=True).rows == {"row": {"ms": 1.0}}
    with pytest.raises(ValueError, match=r"^--output=.*it.json was measured with settings .*; choose another folder"):
        record_of(tmp_path, session, tiny=False)
    assert (tmp_path / "it.json").read_bytes() == before and not os.listdir(tmp_path)[1:]


def test_the_time_limit_is_lifted(session: Session, tmp_path: Path) -> None:
    measure_rows(record_of(tmp_path, session), session, [Row("short", 1, lambda _: {})], seconds=60)
    time.sleep(1.1)  # an alarm that was left would end this process
