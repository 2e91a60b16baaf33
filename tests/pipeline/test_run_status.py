"""Finished, failed or missing: the status in a run folder."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from imsm.config.identity import run_identity, run_name
from imsm.config.stages import final_stage
from imsm.evaluation.result import write_result
from imsm.pipeline.run_status import (
    belongs_to,
    clear_failure,
    load_if_finished,
    read_failure,
    run_dir_of,
    sweep_objectives,
    write_failure,
)
from tests.helpers.config import config, result
from tests.helpers.damage import DAMAGES


def test_the_folder_of_a_run_is_run_dir_or_its_name(tmp_path: Path) -> None:
    assert run_dir_of(config(), runs_root=tmp_path) == tmp_path / run_name(config())
    assert run_dir_of(config(f"run_dir={tmp_path / 'mine'}"), runs_root=tmp_path) == tmp_path / "mine"
    sequence = config("task_sequence=[mrpc,cola]")
    assert run_dir_of(sequence, runs_root=tmp_path).name == run_name(final_stage(sequence))


def test_a_result_counts_only_for_the_same_configuration_and_unchanged_data(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    for role in ("train", "test"):
        (data / f"{role}.jsonl").write_text('{"input": "a", "output": "b"}\n')
    local = ("data=jsonl", f"data.local_dir={data}")
    run_config = config("method=peft", *local)
    assert load_if_finished(run_config, runs_root=tmp_path) is None
    folder = tmp_path / run_name(run_config)
    folder.mkdir()
    write_result(folder, result("peft", *local))
    assert load_if_finished(run_config, runs_root=tmp_path) is not None
    assert load_if_finished(config("method=peft", "logger=wandb", *local), runs_root=tmp_path)
    assert not load_if_finished(config("method=peft", "evaluation.limit=3", *local), runs_root=tmp_path)
    assert not load_if_finished(config("method=peft", "mode=evaluate", *local), runs_root=tmp_path)
    (folder / "training.json").write_text("{}")
    assert load_if_finished(run_config, runs_root=tmp_path) is None  # its model was removed
    (folder / "training.json").unlink()
    later = (folder / "result.json").stat().st_mtime_ns + 10**9
    os.utime(data / "test.jsonl", ns=(later, later))
    assert load_if_finished(run_config, runs_root=tmp_path) is None


def test_an_edited_result_is_not_finished(tmp_path: Path) -> None:
    folder = tmp_path / run_name(config("method=peft"))
    folder.mkdir()
    path = write_result(folder, result("peft", points=47.5))
    assert load_if_finished(config("method=peft"), runs_root=tmp_path) is not None
    path.write_text(path.read_text().replace("47.5", "57.5"))
    assert load_if_finished(config("method=peft"), runs_root=tmp_path) is None


def test_a_failed_run_is_not_finished_until_the_failure_is_cleared(tmp_path: Path) -> None:
    folder = tmp_path / run_name(config("method=peft"))
    write_failure(folder, error="x", exit_code=1, command="imsm run")
    assert not folder.exists()  # a run without a folder gets none
    folder.mkdir()
    write_result(folder, result("peft"))
    write_failure(folder, error="x", exit_code=1, command="imsm run")
    assert load_if_finished(config("method=peft"), runs_root=tmp_path) is None
    failure = read_failure(folder)
    assert failure is not None
    assert (failure["error"], failure["exit_code"], failure["command"]) == ("x", 1, "imsm run")
    clear_failure(folder)
    assert read_failure(folder) is None
    assert load_if_finished(config("method=peft"), runs_root=tmp_path) is not None


@pytest.mark.parametrize("damage", sorted(DAMAGES.keys() - {"missing", "flipped"}))
def test_a_damaged_failure_record_still_is_a_failure_and_can_be_cleared(tmp_path: Path, damage: str) -> None:
    write_failure(tmp_path, error="x", exit_code=1, command="imsm run")
    DAMAGES[damage](tmp_path / "failure.json")
    failure = read_failure(tmp_path)
    assert failure is not None and "failure.json" in failure["error"] and "\n" not in failure["error"]
    clear_failure(tmp_path)
    assert read_failure(tmp_path) is None


def test_a_folder_belongs_to_the_run_with_its_identity(tmp_path: Path) -> None:
    assert not belongs_to(config(), tmp_path)
    (tmp_path / "identity.json").write_text(json.dumps(run_identity(config())))
    assert belongs_to(config(), tmp_path)
    assert not belongs_to(config("seed=7"), tmp_path)


def test_a_search_maximizes_the_target_and_the_average_of_the_forgetting_tests() -> None:
    finished = result("peft", points=40.0)
    finished["evaluation"]["tasks"]["webq"]["metrics"] = {"contain": 80.0}

    assert sweep_objectives(finished, "gsm8k", goals=1) == 40.0
    assert sweep_objectives(finished, "gsm8k", goals=2) == [40.0, 50.0]
    assert sweep_objectives(finished, "ropes", goals=1) is None
    finished["evaluation"]["tasks"] = {"gsm8k": finished["evaluation"]["tasks"]["gsm8k"]}
    assert sweep_objectives(finished, "gsm8k", goals=2) is None
