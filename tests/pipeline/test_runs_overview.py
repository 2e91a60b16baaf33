"""The state of each run is read from its folder."""

from __future__ import annotations

import fcntl
import json
from pathlib import Path
from typing import Any

from imsm.evaluation.result import write_result
from imsm.pipeline.run_status import write_failure
from imsm.pipeline.runs_overview import RunState, run_states
from tests.helpers.config import result
from tests.helpers.trained import write_trained


def write_identity(folder: Path, **changed: Any) -> Path:
    folder.mkdir(parents=True)
    identity = {"method": {"stream": "tuned"}, "data": {"name": "mrpc"}, "seed": 3} | changed
    (folder / "identity.json").write_text(json.dumps(identity))
    return folder


def states(root: Path) -> dict[str, RunState]:
    return {each.name: each for each in run_states(root)}


def test_states_follow_the_files(tmp_path: Path) -> None:
    write_result(write_identity(tmp_path / "finished"), result("peft", points=61.0))
    write_failure(write_identity(tmp_path / "failed"), error="lost\nits way", exit_code=1, command="imsm run seed=3")
    (write_identity(tmp_path / "damaged") / "result.json").write_text("{")
    write_trained(write_identity(tmp_path / "trained"))
    (write_identity(tmp_path / "interrupted") / "checkpoints" / "step-00000002").mkdir(parents=True)
    (tmp_path / "interrupted" / "log.jsonl").write_text('{"step": 1, "loss": 2.0}\n{"step": 2, "loss": 1.0}\n')
    write_identity(tmp_path / "incomplete")
    write_identity(tmp_path / "answers", method={"stream": "original"})
    (tmp_path / "response_cache").mkdir()
    (tmp_path / "notes.txt").touch()
    found = states(tmp_path)
    assert {name: each.state for name, each in found.items()} == {
        **{name: name for name in ("finished", "failed", "trained", "interrupted", "incomplete")},
        "damaged": "failed",
    }
    assert found["failed"].error == "lost its way" and found["failed"].command == "imsm run seed=3"
    assert "result.json" in str(found["damaged"].error)
    assert found["interrupted"].step == 2 and found["incomplete"].step is None
    assert (found["finished"].target, found["finished"].seed, found["finished"].stream) == ("mrpc", 3, "tuned")
    assert set(found["finished"].scores.values()) == {61.0}


def test_a_locked_run_is_running_and_stays_unlocked_by_the_query(tmp_path: Path) -> None:
    lock = write_identity(tmp_path / "run") / "lock"
    lock.touch()
    assert states(tmp_path)["run"].state == "incomplete"
    with lock.open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert states(tmp_path)["run"].state == "running"
    assert states(tmp_path)["run"].state == "incomplete"


def test_no_folder_of_runs_is_no_run(tmp_path: Path) -> None:
    assert run_states(tmp_path / "nowhere") == []
