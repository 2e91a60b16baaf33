"""A run directory belongs to one identity, and its inputs must not change."""

from __future__ import annotations

from pathlib import Path

import pytest

from imsm.utils.errors import UserError
from imsm.utils.json_files import hash_values, write_hashed_json
from imsm.utils.run_dir import IDENTITY_HASH, MODEL_HASH, RunDir, check_input_hashes, open_run_dir, read_training
from tests.helpers.damage import DAMAGES

IDENTITY = {"seed": 0, "peft": {"r": 4}}


def test_a_new_folder_is_created_and_can_be_opened_again(tmp_path: Path) -> None:
    path = tmp_path / "a" / "run"
    assert open_run_dir(path, IDENTITY) == open_run_dir(path, {"seed": 0, "peft": {"r": 4}}) == RunDir(path)
    assert RunDir(path).identity.is_file()


def test_a_run_with_another_identity_is_rejected_with_the_differences(tmp_path: Path) -> None:
    open_run_dir(tmp_path, IDENTITY)
    with pytest.raises(UserError, match=r"(?s)another configuration.*peft\.r: saved 4, now 8"):
        open_run_dir(tmp_path, {"seed": 0, "peft": {"r": 8}})


def test_a_folder_with_other_files_is_rejected(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("")
    with pytest.raises(UserError, match="contains files but no run"):
        open_run_dir(tmp_path, IDENTITY)


def test_lock_and_leftovers_of_a_killed_process_are_accepted(tmp_path: Path) -> None:
    (tmp_path / "lock").write_text("")
    (tmp_path / "identity.json.123.tmp").write_text("{")
    run = open_run_dir(tmp_path, IDENTITY)
    assert [path.name for path in sorted(tmp_path.iterdir())] == [run.identity.name, "lock"]


@pytest.mark.parametrize("content", [b"{", b"\xff\xfe"])
def test_a_damaged_identity_is_a_user_error(tmp_path: Path, content: bytes) -> None:
    RunDir(tmp_path).identity.write_bytes(content)
    with pytest.raises(UserError, match="is damaged"):
        open_run_dir(tmp_path, IDENTITY)


def test_the_training_of_another_run_is_rejected(tmp_path: Path) -> None:
    run, other = (open_run_dir(tmp_path / name, {**IDENTITY, "seed": seed}) for seed, name in enumerate("ab"))
    values = {"trainable_parameters": {}, MODEL_HASH: "f"}
    write_hashed_json(run.trained, {**values, IDENTITY_HASH: hash_values(IDENTITY)})
    assert read_training(run)[MODEL_HASH] == "f"
    run.trained.rename(other.trained)
    with pytest.raises(UserError, match=r"training\.json: is of another run"):
        read_training(other)
    write_hashed_json(other.trained, values)  # as earlier versions wrote it
    assert read_training(other)[MODEL_HASH] == "f"


def test_a_path_that_is_a_file_is_a_user_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        open_run_dir(tmp_path / "file", IDENTITY)


def test_changed_inputs_are_rejected_by_name(tmp_path: Path) -> None:
    run = open_run_dir(tmp_path, IDENTITY)
    check_input_hashes(run, {"backbone": "a", "examples": "b"})
    check_input_hashes(run, {"backbone": "a", "examples": "b"})
    with pytest.raises(UserError, match="the examples changed since this run started"):
        check_input_hashes(run, {"backbone": "a", "examples": "c"})


@pytest.mark.parametrize("damage", sorted(DAMAGES.keys() - {"flipped", "missing"}))
@pytest.mark.parametrize("name", ["identity", "inputs"])
def test_a_damaged_file_is_one_line_that_names_it(tmp_path: Path, name: str, damage: str) -> None:
    run = open_run_dir(tmp_path, IDENTITY)
    check_input_hashes(run, {"backbone": "a"})
    path = getattr(run, name)
    DAMAGES[damage](path)
    with pytest.raises(UserError) as caught:
        open_run_dir(tmp_path, IDENTITY)
        check_input_hashes(run, {"backbone": "a"})
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["trained", "checkpoints"])
def test_lost_input_hashes_of_a_started_training_are_not_replaced(tmp_path: Path, name: str) -> None:
    run = open_run_dir(tmp_path, IDENTITY)
    getattr(run, name).mkdir()
    with pytest.raises(UserError, match=r"input_hashes\.json: is missing"):
        check_input_hashes(run, {"backbone": "a"})
    assert not run.inputs.exists()
