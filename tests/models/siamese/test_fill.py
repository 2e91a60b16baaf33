"""A new model with the values that another one saved: what a later training goes on from."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from imsm.models.backbones.loading import load_backbone
from imsm.models.builder import wrap_backbone
from imsm.models.serialization import load_weights_into
from imsm.models.siamese.model import SiameseForCausalLM
from imsm.pipeline.model import build_adapter, model_kwargs
from imsm.utils.errors import UserError
from tests.helpers.config import config

METHODS = ["lora", "dora", "ia3", "adalora", "vera", "loramoe", "prompt_tuning", "prefix_tuning"]


def new(peft: str, seed: int) -> SiameseForCausalLM:
    chosen = config(f"peft={peft}", f"seed={seed}")
    parts = model_kwargs(chosen)
    return wrap_backbone(load_backbone(**parts["backbone"]), adapter=build_adapter(chosen), **parts)


def learned(model: SiameseForCausalLM) -> dict[str, torch.Tensor]:
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("peft", METHODS)
def test_every_trained_value_is_the_saved_one(peft: str, tmp_path: Path) -> None:
    torch.manual_seed(1)
    trained = new(peft, seed=0)
    with torch.no_grad():
        for value in learned(trained).values():
            value.add_(torch.randn_like(value))
    trained.save_pretrained(tmp_path)
    other = new(peft, seed=0)
    assert any(not v.equal(learned(other)[n]) for n, v in learned(trained).items())
    load_weights_into(other, tmp_path)
    assert learned(other).keys() == learned(trained).keys()
    for name, value in learned(trained).items():
        assert value.equal(learned(other)[name]), name
    assert all(value.requires_grad for value in learned(other).values())


def test_what_an_encoder_made_is_no_encoder(tmp_path: Path) -> None:
    new("p_tuning", seed=0).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="does not keep all that is learned"):
        load_weights_into(new("p_tuning", seed=0), tmp_path)


def test_the_values_of_another_method_are_refused(tmp_path: Path) -> None:
    new("ia3", seed=0).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="other layers"):
        load_weights_into(new("lora", seed=0), tmp_path)
