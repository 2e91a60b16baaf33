"""Setting up a training: validation split, resumable methods, hashes of parent weights."""

from __future__ import annotations

from pathlib import Path

import pytest

from imsm.data.tokenization import TokenizedExample
from imsm.pipeline.train import _split_validation, check_resumable_method, frozen_adapter_hash, parent_hash
from imsm.utils.errors import UserError
from tests.helpers.config import config


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
    (tmp_path / "training.json").write_text("{}")
    (tmp_path / "model").mkdir()
    weights = tmp_path / "model" / "gate.safetensors"
    weights.write_bytes(b"a")
    before = parent_hash(tmp_path)
    weights.write_bytes(b"ab")
    assert parent_hash(tmp_path) != before


def test_a_run_without_a_frozen_adapter_has_no_hash_of_one() -> None:
    assert frozen_adapter_hash(config()) is None
