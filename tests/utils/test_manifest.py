"""A saved model is compared with the hashes of its files at every load, and nothing is taken from a cache."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from imsm.utils.errors import UserError
from imsm.utils.json_files import write_hashed_json
from imsm.utils.manifest import FILE, verify_manifest, verify_run_model, write_manifest
from imsm.utils.run_dir import RunDir
from tests.helpers.damage import DAMAGES, flip_bit
from tests.helpers.trained import write_trained


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    return write_trained(tmp_path / "run")


def error_of(run: RunDir) -> str:
    with pytest.raises(UserError) as caught:
        verify_run_model(run)
    text = str(caught.value)
    assert (
        "\n" not in text
        and text.startswith(str(run.path))
        and f"remove {run.path} and" in text.replace("the folder ", "")
    )
    return text


def test_unchanged_files_are_returned_with_their_hashes(run: RunDir) -> None:
    assert sorted(verify_run_model(run)) == ["adapter/adapter_model.safetensors", "config.json", "gate.safetensors"]


@pytest.mark.parametrize("name", ["adapter/adapter_model.safetensors", "config.json", "gate.safetensors", FILE])
@pytest.mark.parametrize("damage", sorted(DAMAGES))
def test_every_damage_of_a_file_is_named(run: RunDir, name: str, damage: str) -> None:
    DAMAGES[damage](run.model / name)
    assert str(run.model / name) in error_of(run)


@pytest.mark.parametrize("damage", sorted(DAMAGES))
def test_a_damaged_training_record_is_named(run: RunDir, damage: str) -> None:
    DAMAGES[damage](run.trained)
    assert str(run.trained) in error_of(run)


def test_a_flipped_bit_is_found_though_size_and_times_are_kept(run: RunDir) -> None:
    weights = run.adapter / "adapter_model.safetensors"
    verify_run_model(run)
    times = weights.stat()
    flip_bit(weights)
    os.utime(weights, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert "changed since it was saved" in error_of(run)


def test_an_added_file_is_named_but_not_a_temporary_file(run: RunDir) -> None:
    (run.model / "hashes.json.1-ab.tmp").write_text("{")
    verify_run_model(run)
    (run.model / "adapter" / "other.safetensors").write_bytes(b"")
    assert "other.safetensors: is not one of the files that were saved" in error_of(run)


def test_a_manifest_that_was_written_again_is_found(run: RunDir) -> None:
    flip_bit(run.model / "gate.safetensors")
    write_manifest(run.model)
    assert f"{FILE}: changed since training ended" in error_of(run)


def test_only_files_of_the_folder_are_read(tmp_path: Path) -> None:
    for name in ("/dev/zero", "../outside"):
        (tmp_path / "model").mkdir(exist_ok=True)
        (tmp_path / "outside").write_text("")
        write_hashed_json(tmp_path / "model" / FILE, {"format": 1, "files": {name: "0"}})
        with pytest.raises(UserError, match="is missing; fix it"):
            verify_manifest(tmp_path / "model", fix="fix it", may_add=lambda _: False)
