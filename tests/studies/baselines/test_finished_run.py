"""Opening a run, and routing between its responses."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from imsm.evaluation.result import read_result, write_result
from imsm.studies.baselines.finished_run import FinishedRun, load_finished_run
from imsm.utils.errors import UserError
from tests.studies.baselines.finished import FORGETTING, original_of


def copy_with(folder: Path, target: Path, **config: Any) -> Path:
    """Copy a run and change settings in its result."""
    shutil.copytree(folder, target)
    result = read_result(target)
    for key, value in config.items():
        section, _, name = key.rpartition("__")
        (result["config"][section] if section else result["config"])[name] = value
    write_result(target, result)
    return target


def test_only_a_finished_run_with_an_adapter_is_opened(peft_folder: Path, tmp_path: Path) -> None:
    for folder, message in (
        (tmp_path / "none", "is not a directory"),
        (tmp_path, "no finished run"),
        (original_of(peft_folder), "has no adapter"),
    ):
        with pytest.raises(UserError, match=message):
            load_finished_run(folder, option="run")
    other_version = copy_with(peft_folder, tmp_path / "version", unknown=1)
    with pytest.raises(UserError, match="another version"):
        load_finished_run(other_version, option="run")


def test_responses_cached_next_to_a_downloaded_run_are_not_used(
    peft_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("IMSM_RUNS", str(tmp_path / "own"))
    downloaded = tmp_path / "downloaded" / peft_folder.name
    shutil.copytree(peft_folder, downloaded)
    # readable rows of the same model
    shutil.copytree(peft_folder.parent / "response_cache", downloaded.parent / "response_cache")
    before = {path: path.read_bytes() for path in downloaded.parent.glob("response_cache/*")}
    run = load_finished_run(downloaded, option="run")
    run.responses(FORGETTING, "tuned")
    assert run._models  # generated again
    assert list((tmp_path / "own").glob("response_cache/*.sqlite"))
    assert {path: path.read_bytes() for path in downloaded.parent.glob("response_cache/*")} == before


def test_a_changed_backbone_is_rejected(peft_folder: Path, tmp_path: Path) -> None:
    changed = copy_with(peft_folder, tmp_path / "changed")
    (hashes,) = changed.glob("*input*.json")
    hashes.write_text(json.dumps(json.loads(hashes.read_text()) | {"backbone": "0" * 64}))
    with pytest.raises(UserError, match="backbone"):
        load_finished_run(changed, option="run")


def test_the_other_run_differs_in_its_seed_only(peft_folder: Path, tmp_path: Path) -> None:
    seed = load_finished_run(copy_with(peft_folder, tmp_path / "seed", seed=1), option="--other")
    assert load_finished_run(peft_folder, option="run", other=seed).other is seed
    limited = copy_with(peft_folder, tmp_path / "limited", seed=1, data__max_train_examples=4, trainer__num_epochs=1)
    with pytest.raises(UserError, match=r"--other .*max_train_examples is 4, not null.*num_epochs is 1, not 30"):
        load_finished_run(peft_folder, option="run", other=load_finished_run(limited, option="--other"))
    itself = load_finished_run(peft_folder, option="--other")
    with pytest.raises(UserError, match="is the run itself"):
        load_finished_run(peft_folder, option="run", other=itself)


def test_a_route_takes_each_response_from_its_stream(peft_run: FinishedRun) -> None:
    tuned, original = (peft_run.responses(FORGETTING, stream)[0] for stream in ("tuned", "original"))
    choices = [index % 2 == 0 for index in range(len(tuned))]
    rows, references = peft_run.route(FORGETTING, choices)
    assert [row["text"] for row in rows] == [
        (original if choice else tuned)[index]["text"] for index, choice in enumerate(choices)
    ]
    assert [row["gate_mean"] for row in rows] == [float(choice) for choice in choices]
    assert len(references) == len(rows)
