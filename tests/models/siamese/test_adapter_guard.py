"""Changes of the adapter through PEFT, after the model was built, are refused instead of giving wrong streams."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import LoraConfig

from imsm.models.siamese.decoding_session import DecodingSession
from imsm.models.siamese.model import SiameseForCausalLM
from imsm.utils.errors import UserError
from tests.helpers.adapters import prompt_tuning
from tests.models.siamese.tiny import ATTENTION, labelled_batch, prompts, tiny_siamese


def add_and_set(model: SiameseForCausalLM) -> None:
    model.adapted.add_adapter("other", LoraConfig(r=2, target_modules=ATTENTION))
    model.adapted.set_adapter("other")


Change = Callable[[SiameseForCausalLM], object]
CHANGES: dict[str, tuple[Change, str, Change | None]] = {
    "merge_adapter": (lambda m: m.adapted.merge_adapter(), "unmerge_adapter", lambda m: m.adapted.unmerge_adapter()),
    "merge_and_unload": (lambda m: m.adapted.merge_and_unload(), "was removed", None),
    "unload": (lambda m: m.adapted.unload(), "was removed", None),
    "delete_adapter": (lambda m: m.adapted.delete_adapter("default"), "was removed", None),
    "set_adapter": (add_and_set, r"set_adapter\('default'\)", lambda m: m.adapted.set_adapter("default")),
}


def uses(model: SiameseForCausalLM, folder: Path) -> list[Callable[[], object]]:
    """Return everything that would give a wrong result."""
    _, batch = labelled_batch(side="left")
    mask = batch["attention_mask"]
    return [
        lambda: model(**batch),
        lambda: model.generate(batch["input_ids"], attention_mask=mask, max_new_tokens=2),
        lambda: model.log_likelihood(batch["input_ids"], attention_mask=mask, labels=batch["labels"]),
        lambda: DecodingSession(model, prompts(), pad_id=0),
        lambda: model.save_pretrained(folder),
    ]


@pytest.mark.parametrize("name", CHANGES)
def test_change_through_peft_is_refused_until_it_is_undone(name: str, tmp_path: Path) -> None:
    change, message, undo = CHANGES[name]
    model = tiny_siamese()
    _, batch = labelled_batch(side="left")
    before = {stream: loss(model, batch, stream) for stream in model.available_streams()}
    change(model)
    for stream in before:
        model.stream = stream
        for use in uses(model, tmp_path / "saved"):
            with pytest.raises(UserError, match=message):
                use()
    assert not (tmp_path / "saved").exists()
    if undo is not None:
        undo(model)
        for stream, value in before.items():
            torch.testing.assert_close(loss(model, batch, stream), value)


def loss(model: SiameseForCausalLM, batch: dict[str, torch.Tensor], stream: str) -> torch.Tensor:
    model.stream = stream
    with torch.no_grad():
        return model(**batch).loss


def test_second_adapter_that_is_not_active_changes_nothing() -> None:
    model = tiny_siamese()
    _, batch = labelled_batch(side="left")
    before = loss(model, batch, "interwoven")
    model.adapted.add_adapter("other", LoraConfig(r=2, target_modules=ATTENTION))
    assert torch.equal(loss(model, batch, "interwoven"), before)


def test_deleted_prompt_is_refused() -> None:
    model = tiny_siamese(method=prompt_tuning(num_virtual_tokens=3))
    model.adapted.delete_adapter("default")
    with pytest.raises(UserError, match="was removed"):
        model(**labelled_batch(side="left")[1])


def test_layer_inside_a_wrapper_is_not_removed() -> None:
    model = tiny_siamese()
    attention = model.streams.decoder.layers[0].self_attn
    attention.q_proj = torch.nn.Sequential(attention.q_proj)
    assert loss(model, labelled_batch(side="left")[1], "interwoven") > 0
