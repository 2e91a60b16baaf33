"""The runs of a table: validation, and running the missing ones."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from imsm.studies.paper.runs import RunIndex, RunRef, required_runs, run_missing, validate_runs
from imsm.studies.paper.spec import list_tables, load_table
from tests.studies.paper.finished import write_run


def missing_run(root: Path, name: str, *overrides: str) -> RunRef:
    return RunRef(
        overrides=overrides, name=name, folder=root / name, state="missing", result=None, failure=None, trained=True
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", list_tables())
@pytest.mark.parametrize("scale", ["mini", "paper"])
def test_every_run_of_a_table_is_valid(runs: RunIndex, name: str, scale: str) -> None:
    validate_runs(load_table(name), runs, scale=scale)


def test_equal_rows_of_the_miniature_are_one_run(runs: RunIndex, tmp_path: Path) -> None:
    table3 = load_table("table3")
    assert len(required_runs(table3, runs, scale="mini", seeds=1)) == 2
    assert len(required_runs(table3, runs, scale="mini", seeds=3)) == 6
    assert len(required_runs(table3, runs, scale="paper", seeds=1)) == 6


def test_an_edited_result_is_shown_as_failed_with_the_fix(runs: RunIndex) -> None:
    table = load_table("table3")
    wanted = next(iter(required_runs(table, runs, scale="mini", seeds=1)))
    write_run(wanted, runs, known=0.5, seed=0)
    runs.refresh()
    assert runs.find(wanted.overrides).state == "done"
    path = wanted.folder / "result.json"
    path.write_text(path.read_text().replace('"num_examples": 50', '"num_examples": 51', 1))
    runs.refresh()
    found = runs.find(wanted.overrides)
    assert (found.state, found.result) == ("failed", None)
    assert found.failure is not None and str(path) in found.failure and "mode=evaluate" in found.failure


def test_a_failed_run_does_not_stop_the_others(tmp_path: Path) -> None:
    lines: list[str] = []
    wanted = [missing_run(tmp_path, "a", "peft=lorra"), missing_run(tmp_path, "b", "--help")]
    assert run_missing(wanted, log_dir=tmp_path / "logs", jobs=1, log=lines.append) == ["a"]
    failure = json.loads((tmp_path / "a" / "failure.json").read_text())
    assert "lorra" in failure["error"] and failure["exit_code"] == 2
    assert not (tmp_path / "b" / "failure.json").exists()
    assert any("b: done" in line for line in lines)


def test_a_killed_run_does_not_stop_the_others_and_an_interrupted_one_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = tmp_path / "python"
    fake.write_text('#!/bin/sh\ncase "$3" in big) kill -9 $$;; hand) exit 130;; esac\n')
    fake.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(fake))
    lines: list[str] = []
    wanted = [missing_run(tmp_path, "big", "big"), missing_run(tmp_path, "small", "small")]
    assert run_missing(wanted, log_dir=tmp_path / "logs", jobs=1, log=lines.append) == ["big"]
    failure = json.loads((tmp_path / "big" / "failure.json").read_text())
    assert "SIGKILL" in failure["error"] and failure["exit_code"] == 137
    assert any("small: done" in line for line in lines)

    lines.clear()
    with pytest.raises(KeyboardInterrupt):
        run_missing(
            [missing_run(tmp_path, "hand", "hand"), missing_run(tmp_path, "small", "small")],
            log_dir=tmp_path / "logs",
            jobs=1,
            log=lines.append,
        )
    assert not any("small" in line for line in lines)
    assert not (tmp_path / "hand" / "failure.json").exists()


# Notes when it starts and ends and which GPUs it sees; "fail" fails, a stop signal ends it as a run ends.
WORKER = """#!/bin/sh
trap 'echo "$3 stop $CUDA_VISIBLE_DEVICES" >> {notes}; exit 143' TERM
echo "$3 start $CUDA_VISIBLE_DEVICES" >> {notes}
i=0; while [ $i -lt {ticks} ]; do sleep 0.05; i=$((i+1)); done
echo "$3 end $CUDA_VISIBLE_DEVICES" >> {notes}
case "$3" in fail*) exit 1;; esac
"""


class Workers:
    """Runs whose program is a script, on GPUs that do not exist."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.root, self.notes, self._monkeypatch = root, root / "notes", monkeypatch

    def run(self, *names: str, ticks: int = 4, **options: Any) -> list[str]:
        fake = self.root / "python"
        fake.write_text(WORKER.format(notes=self.notes, ticks=ticks))
        fake.chmod(0o755)
        self._monkeypatch.setattr(sys, "executable", str(fake))
        wanted = [missing_run(self.root, name, name) for name in names if not self.finished(name)]
        return run_missing(wanted, log_dir=self.root / "logs", log=lambda line: None, **options)

    def events(self) -> list[list[str]]:
        """Return run, event and GPUs, in their order."""
        return [line.split(" ") for line in self.notes.read_text().splitlines()] if self.notes.exists() else []

    def finished(self, name: str) -> bool:
        return any(event[:2] == [name, "end"] for event in self.events())

    def check_exclusive(self) -> int:
        """Check that no GPU has two runs at once; return the largest number of runs at once."""
        busy: dict[str, list[str]] = {}
        most = 0
        for name, event, visible in self.events():
            gpus = visible.split(",")
            if event == "start":
                assert not set(gpus) & {gpu for others in busy.values() for gpu in others}
                busy[name] = gpus
                most = max(most, len(busy))
            else:
                assert busy.pop(name) == gpus
        assert not busy
        return most


@pytest.fixture
def workers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workers:
    return Workers(tmp_path, monkeypatch)


def test_each_run_has_a_gpu_of_its_own_and_all_gpus_are_used(workers: Workers) -> None:
    names = [f"run{n}" for n in range(7)]
    assert workers.run(*names, jobs=3, gpus=["4", "GPU-5f", "MIG-7"]) == []
    starts = [event for event in workers.events() if event[1] == "start"]
    assert {visible for *_, visible in starts} == {"4", "GPU-5f", "MIG-7"}
    assert {name for name, *_ in starts[:3]} == set(names[:3])  # in their order
    assert {name for name, *_ in starts} == set(names) and len(starts) == 7
    assert workers.check_exclusive() == 3


def test_a_run_that_needs_all_gpus_waits_for_them_and_the_next_ones_for_it(workers: Workers) -> None:
    def needed(run: RunRef) -> int:
        return 2 if run.name == "large" else 1

    assert workers.run("a", "b", "large", "c", jobs=2, gpus=["0", "1"], gpus_of=needed) == []
    (visible,) = [gpus for name, event, gpus in workers.events() if (name, event) == ("large", "start")]
    assert sorted(visible.split(",")) == ["0", "1"]
    assert [name for name, event, _ in workers.events() if event == "start"][2:] == ["large", "c"]
    assert workers.check_exclusive() == 2


def test_a_run_that_fails_frees_its_gpu(workers: Workers) -> None:
    assert workers.run("fail1", "a", "fail2", "b", jobs=1, gpus=["3"]) == ["fail1", "fail2"]
    assert workers.check_exclusive() == 1
    assert workers.finished("b")


def test_no_more_runs_than_gpus_and_no_more_than_jobs(workers: Workers) -> None:
    assert workers.run("a", "b", "c", jobs=8, gpus=["0", "1"]) == []
    assert workers.check_exclusive() == 2
    workers.notes.unlink()
    assert workers.run("d", "e", "f", jobs=2, gpus=["0", "1", "2"]) == []
    assert workers.check_exclusive() == 2


def test_an_interrupt_ends_all_runs_and_the_same_call_runs_the_rest(workers: Workers) -> None:
    names = [f"run{n}" for n in range(6)]
    started = threading.Timer(0.9, lambda: os.kill(os.getpid(), signal.SIGINT))
    started.start()
    with pytest.raises(KeyboardInterrupt):
        workers.run(*names, jobs=2, gpus=["0", "1"], ticks=10)
    started.join()
    events = workers.events()
    assert sum(event == "stop" for _, event, _ in events) == 2
    assert 0 < sum(map(workers.finished, names)) < 5
    assert workers.check_exclusive() == 2
    before = len(events)
    assert workers.run(*names, jobs=2, gpus=["0", "1"]) == []
    assert all(map(workers.finished, names))
    repeated = [name for name, event, _ in workers.events()[before:] if event == "start"]
    assert not {name for name, event, _ in events if event == "end"} & set(repeated)


def test_without_gpus_the_environment_stays_as_it_is(workers: Workers, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,6")
    assert workers.run("a", jobs=1) == []
    assert {visible for *_, visible in workers.events()} == {"5,6"}
