"""peft=generic, and the PEFT types of the shipped options."""

from __future__ import annotations

from typing import Any

import pytest
from peft import PeftType

from imsm.models.adapters.peft_generic import peft_tuner
from imsm.pipeline.model import build_adapter
from imsm.utils.errors import UserError
from tests.helpers.config import config


def test_type_targets_and_fields() -> None:
    chosen = peft_tuner(target_modules=["q_proj"], peft_type="hra", kwargs={"r": 6}).config
    assert (chosen.peft_type, chosen.r, chosen.target_modules) == (PeftType.HRA, 6, {"q_proj"})
    explicit = peft_tuner(target_modules=["q_proj"], peft_type="HRA", kwargs={"target_modules": ["v"]})
    assert explicit.config.target_modules == {"v"}
    assert peft_tuner(target_modules=["q_proj"], peft_type="LN_TUNING", kwargs=None).config
    embeddings = peft_tuner(target_modules=["q_proj"], peft_type="TRAINABLE_TOKENS", kwargs={"token_indices": [3]})
    assert "q_proj" not in (embeddings.config.target_modules or "")


@pytest.mark.parametrize(
    ("kind", "arguments", "message"),
    [
        ("HRE", {}, "did you mean peft.peft_type=HRA"),
        ("HRA", {"rr": 8}, r"did you mean peft\.kwargs\.r=8"),
        ("HRA", {"r": "eight"}, r"peft\.kwargs\.r.*whole number"),
        ("HRA", {"r": 2.5}, "whole number"),
        ("HRA", {"peft_type": "LORA"}, "no such key"),
        ("LORA", {"init_lora_weights": "pisa"}, "init_lora_weights"),
        ("VBLORA", {"num_vectors": "many"}, "whole number"),
        ("ADALORA", {"total_step": 5}, "peft=adalora"),
        ("OFT", {"r": 4, "oft_block_size": 4}, "OFTConfig rejects"),
    ],
)
def test_invalid_types_and_fields_are_rejected(kind: str, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        peft_tuner(target_modules=["q_proj"], peft_type=kind, kwargs=arguments)


@pytest.mark.parametrize(
    ("overrides", "kind", "targets"),
    [
        (("peft=bitfit",), "BEFT", 7),
        (("peft=bitfit", "backbone=chatglm3"), "BEFT", 4),
        (("peft=ln_tuning",), "LN_TUNING", 3),
        (("peft=ln_tuning", "backbone=gemma3_270m"), "LN_TUNING", 5),
        (("peft=vera", "backbone=llama3"), "VERA", 2),
        (("peft=oft", "backbone=chatglm3"), "OFT", 1),
        (("peft=prompt_tuning",), "PROMPT_TUNING", None),
        (("peft=p_tuning",), "P_TUNING", None),
        (("peft=prefix_tuning",), "PREFIX_TUNING", None),
        (("peft=generic", "peft.peft_type=HRA", "peft.kwargs={r: 8}", "backbone=llama3"), "HRA", 2),
    ],
)
def test_options_become_adapters(overrides: tuple[str, ...], kind: str, targets: int | None) -> None:
    chosen: Any = build_adapter(config(*overrides)).config
    assert chosen.peft_type == kind
    assert (len(chosen.target_modules) if targets else None) == targets


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (("peft=prompt_tuning", "peft.target_roles=[mlp_up]"), r"peft\.target_roles=\[mlp_up\]"),
        (("peft=vera", "peft.target_roles=[]"), "at least one role"),
        (("peft=generic",), "peft.peft_type"),
        (("peft=generic", "peft.peft_type=XLORA"), "XLORA mixes"),
    ],
)
def test_wrong_options_are_rejected_with_the_configuration(override: tuple[str, ...], message: str) -> None:
    with pytest.raises(UserError, match=message):
        config(*override)
