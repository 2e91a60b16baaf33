"""Setting up a training: validation split, resumable methods, hashes of parent weights."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from imsm.data.tokenization import TokenizedExample
from imsm.pipeline.model import frozen_adapter_hash
from imsm.pipeline.train import _finish_run_dir, _split_validation, check_resumable_method, parent_hash
from imsm.utils.errors import UserError
from imsm.utils.json_files import write_hashed_json
from imsm.utils.manifest import verify_run_model, write_manifest
from imsm.utils.run_dir import MODEL_HASH, RunDir, read_training
from tests.helpers.config import config
from tests.helpers.damage import flip_bit
from tests.helpers.disk_events import record_disk_events
from tests.helpers.trained import write_trained


def examples(count: int) -> list[TokenizedExample]:
    return [TokenizedExample(id=str(n), prompt_ids=(n,), answer_ids=(n,)) for n in range(count)]


def test_the_validation_split_is_random_reproducible_and_in_order() -> None:
    run_config = config("trainer.validation_size=3")
    training, validation = _split_validation(run_config, examples(20))
    assert (len(training), len(validation)) == (17, 3)
    assert sorted([*training, *validation], key=lambda each: int(each.id)) == examples(20)
    assert [int(each.id) for each in training] == sorted(int(each.id) for each in training)
    assert _split_validation(run_config, examples(20)) == (training, validation)
    assert _split_validation(config("trainer.validation_size=3", "seed=5"), examples(20))[1] != validation


def test_without_validation_all_examples_are_trained_on() -> None:
    assert _split_validation(config(), examples(4)) == (examples(4), [])


def test_a_validation_set_that_takes_all_examples_is_rejected() -> None:
    with pytest.raises(UserError, match=r"^trainer.validation_size=4: "):
        _split_validation(config("trainer.validation_size=4"), examples(4))


@pytest.mark.parametrize(
    ("overrides", "resumable"),
    [
        (["peft=lora"], True),
        (["peft=prefix_tuning"], True),
        (["peft=p_tuning"], False),
        (["peft=prefix_tuning", "peft.prefix_projection=true", "peft.encoder_hidden_size=8"], False),
    ],
)
def test_methods_with_an_unsaved_encoder_cannot_start_a_sequence(overrides: list[str], resumable: bool) -> None:
    if resumable:
        check_resumable_method(config(*overrides))
        return
    with pytest.raises(UserError, match=r"^peft="):
        check_resumable_method(config(*overrides))


def test_the_hash_of_an_unfinished_parent_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has not finished training"):
        parent_hash(tmp_path)


def test_a_parent_hash_changes_with_its_weights(tmp_path: Path) -> None:
    write_trained(tmp_path)
    before = parent_hash(tmp_path)
    assert parent_hash(tmp_path) == before
    write_trained(tmp_path, weights=b"others")
    assert parent_hash(tmp_path) != before


def test_a_damaged_previous_stage_or_frozen_adapter_is_never_another_one(tmp_path: Path) -> None:
    run = write_trained(tmp_path / "run")
    frozen = config().model_copy(update={"frozen_adapter": str(run.path)})
    assert frozen_adapter_hash(frozen)
    flip_bit(run.adapter / "adapter_model.safetensors")
    for function, argument in ((parent_hash, run.path), (frozen_adapter_hash, frozen)):
        with pytest.raises(UserError, match=r"adapter_model\.safetensors: changed since it was saved"):
            function(argument)  # type: ignore[operator]


def test_the_hash_of_a_frozen_adapter_does_not_depend_on_its_gate(tmp_path: Path) -> None:
    run = write_trained(tmp_path / "run")
    frozen = config().model_copy(update={"frozen_adapter": str(run.path)})
    before = frozen_adapter_hash(frozen)
    (run.model / "gate.safetensors").write_bytes(b"another gate")
    record = read_training(run) | {MODEL_HASH: write_manifest(run.model)}
    write_hashed_json(run.trained, record)
    assert frozen_adapter_hash(frozen) == before


def test_a_finished_training_is_on_disk_before_its_record_and_its_record_before_checkpoints_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = RunDir(tmp_path / "run")
    write_trained(run.path)
    run.trained.unlink()
    (run.checkpoints / "step-1").mkdir(parents=True)
    tokenizer = SimpleNamespace(save_pretrained=lambda folder: (folder / "tokenizer.json").write_text("{}"))
    events = record_disk_events(monkeypatch)
    _finish_run_dir(config(), run, tokenizer, {"trainable_parameters": {"adapter": 1, "gate": 1}})  # type: ignore[arg-type]
    names = {"adapter/adapter_model.safetensors", "config.json", "gate.safetensors", "tokenizer.json"}
    assert set(verify_run_model(run)) == names
    finished = events.index(("rename", run.trained))
    before = [path for name, path in events[:finished] if name == "fsync"]
    saved = {run.model, run.path, *run.model.rglob("*")}
    assert saved <= set(before) and before[-1].name.startswith("training.json.")
    assert events[finished + 1 :] == [("fsync", run.path), ("delete", run.checkpoints)]


def test_a_run_without_a_frozen_adapter_has_no_hash_of_one() -> None:
    assert frozen_adapter_hash(config()) is None
