"""Building models: equal adapters for PEFT and IMSM, finished adapters, and rejected backbones."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import LoraConfig

from imsm.models.adapters.base import AdapterSpec
from imsm.models.builder import build_model, count_trainable, wrap_backbone
from imsm.models.siamese.model import SiameseForCausalLM
from imsm.utils.errors import UserError
from scripts.compatibility.tiny_models import tiny_backbone as random_backbone
from scripts.compatibility.tiny_models import tiny_configuration
from tests.models.siamese.tiny import ADAPTERS, ATTENTION, QUERY_GATE, perturb, prompts, tiny_backbone

OPTIONS = {"pooling": "mean", "seed": 3}


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("backbone")
    tiny_backbone("llama").save_pretrained(folder)
    return {"name_or_path": str(folder), "dtype": "float32"}


def built(backbone: dict[str, str], *, gate: dict | None = QUERY_GATE) -> SiameseForCausalLM:
    stream = "tuned" if gate is None else "interwoven"
    return build_model(backbone=backbone, adapter=ADAPTERS["lora"](), gate=gate, stream=stream, **OPTIONS)


def test_peft_and_imsm_start_from_the_same_adapter(backbone: dict[str, str]) -> None:
    with_gate, without = built(backbone), built(backbone, gate=None)
    for name, value in without.adapted.named_parameters():
        assert torch.equal(value, with_gate.adapted.get_parameter(name)), name
    assert without.gate is None and count_trainable(without)["gate"] == 0
    assert count_trainable(with_gate) == {"adapter": count_trainable(without)["adapter"], "gate": 4 * (4 * 32 + 32)}


def test_finished_adapter_is_loaded_and_stays_frozen(backbone: dict[str, str], tmp_path: Path) -> None:
    finished = built(backbone, gate=None)
    perturb(finished)
    finished.save_pretrained(tmp_path)
    model = build_model(
        backbone=backbone, adapter=tmp_path / "adapter", gate=QUERY_GATE, stream="interwoven", **OPTIONS
    )
    assert count_trainable(model) == {"adapter": 0, "gate": 4 * (4 * 32 + 32)}
    model.train()
    assert not model.adapted.training
    model.stream = "tuned"
    ids = torch.tensor(prompts()[:1])
    assert torch.equal(model(ids).logits, finished.eval()(ids).logits)


def test_capabilities_of_the_backbone_are_stored_in_the_configuration() -> None:
    for name, supports_cache in (("mamba2", False), ("gpt2", True)):
        model = wrap_backbone(
            random_backbone(tiny_configuration(name)),
            backbone={"name_or_path": name},
            adapter=None,
            gate=None,
            stream="original",
            **OPTIONS,
        )
        assert model.config.supports_cache == model.config.supports_inner_padding == supports_cache


def test_backbone_on_meta_is_not_checked() -> None:
    adapter = AdapterSpec(LoraConfig(target_modules=ATTENTION, r=2))
    with torch.device("meta"):
        model = wrap_backbone(
            tiny_backbone("llama").to("meta"),
            backbone={"name_or_path": "tiny"},
            adapter=adapter,
            gate=QUERY_GATE,
            stream="interwoven",
            **OPTIONS,
        )
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}


def test_adapter_outside_the_decoder_is_rejected(backbone: dict[str, str]) -> None:
    adapter = AdapterSpec(LoraConfig(target_modules=["lm_head"], r=2))
    with pytest.raises(UserError, match="lm_head"):
        build_model(backbone=backbone, adapter=adapter, gate=None, stream="tuned", **OPTIONS)
