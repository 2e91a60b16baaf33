"""Methods that are rejected by their configuration, before a model is loaded."""

from __future__ import annotations

from typing import Any

import pytest
from peft import LoraConfig

from imsm.models.adapters.base import AdapterSpec, attach_adapter
from imsm.models.adapters.peft_generic import peft_tuner
from imsm.models.adapters.unsupported import TYPES, reject_unsupported, unsupported_reason
from imsm.models.builder import build_model
from imsm.utils.errors import UserError
from tests.models.siamese.tiny import ADAPTERS, tiny_backbone

INITIALIZATIONS = ["pissa", "pissa_niter_4", "olora", "corda", "loftq", "lora_ga", "eva"]


@pytest.mark.parametrize("init", INITIALIZATIONS)
def test_initializations_that_overwrite_weights_or_need_data(init: str) -> None:
    with pytest.raises(UserError, match=f"init_lora_weights={init}"):
        peft_tuner(target_modules=["q_proj"], peft_type="LORA", kwargs={"init_lora_weights": init})


@pytest.mark.parametrize("init", ["gaussian", "orthogonal", "mica", False])
def test_other_initializations(init: Any) -> None:
    peft_tuner(target_modules=["q_proj"], peft_type="LORA", kwargs={"init_lora_weights": init})


@pytest.mark.parametrize("name", TYPES)
def test_unsupported_types(name: str) -> None:
    with pytest.raises(UserError, match=name):
        peft_tuner(target_modules=["q_proj"], peft_type=name.lower(), kwargs={})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"bias": "all"}, "own biases"),
        ({"bias": "lora_only"}, "own biases"),
        ({"layer_replication": [(0, 2)]}, "depth"),
        ({"alora_invocation_tokens": [5]}, "prompt"),
    ],
)
def test_unsupported_fields(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        reject_unsupported(LoraConfig(task_type="CAUSAL_LM", **arguments))


def test_a_context_with_labels() -> None:
    context = {"cpt_token_ids": [5, 6, 7], "cpt_mask": [1, 1, 1], "num_virtual_tokens": 3}
    peft_tuner(target_modules=["q_proj"], peft_type="CPT", kwargs={**context, "cpt_tokens_type_mask": [1, 2, 3]})
    with pytest.raises(UserError, match="labels"):
        peft_tuner(target_modules=["q_proj"], peft_type="CPT", kwargs={**context, "cpt_tokens_type_mask": [1, 2, 4]})


@pytest.mark.parametrize("method", ADAPTERS)
def test_shipped_methods_are_supported(method: str) -> None:
    assert unsupported_reason(ADAPTERS[method]().config) is None


def test_rejected_before_the_backbone_is_loaded() -> None:
    config = LoraConfig(target_modules=["q_proj"], init_lora_weights="pissa")
    with pytest.raises(UserError, match="pissa"):
        attach_adapter(AdapterSpec(config), tiny_backbone("llama"))
    with pytest.raises(UserError, match="pissa"):
        build_model(
            backbone={"name_or_path": "nowhere"},
            adapter=AdapterSpec(config),
            gate=None,
            pooling="mean",
            stream="tuned",
            seed=0,
        )
