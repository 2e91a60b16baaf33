"""What is measured: a backbone, LoRA on some of its modules, the gate, a batch of some shape."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any

import torch

from imsm.data.tokenization import TokenizedExample
from imsm.models.adapters.base import adapter_from_config
from imsm.models.backbones.loading import disable_dropout, load_backbone
from imsm.models.builder import wrap_backbone
from imsm.models.siamese.adapter_check import check_adapter, snapshot
from imsm.models.siamese.model import SiameseForCausalLM
from imsm.models.siamese.streams import Stream

GATE_INPUTS = ["query_original", "original", "tuned", "query_tuned"]


@dataclass(frozen=True, kw_only=True)
class Setup:
    """A model and a training batch.

    ``backbone`` holds the arguments of `load_backbone` but dtype; with ``shape`` (keys of a
    config.json) its weights are random instead, and nothing is loaded. ``batch`` rows have
    ``prompt_tokens`` and ``answer_tokens`` (the last is the end of the text).
    """

    backbone: dict[str, Any]
    shape: dict[str, Any] | None
    target_modules: list[str]
    gate_rank: int
    lora_rank: int
    batch: int
    prompt_tokens: int
    answer_tokens: int
    dtype: str
    device: str

    def written(self) -> str:
        """As a command line's argument."""
        return json.dumps(asdict(self))


def plain_backbone(setup: Setup) -> Any:
    """The frozen language model alone."""
    if setup.shape is None:
        model = load_backbone(**setup.backbone, dtype=setup.dtype)
        return model.to(setup.device)  # type: ignore[arg-type]
    from transformers import AutoConfig, AutoModelForCausalLM

    keys = dict(setup.shape)
    config = AutoConfig.for_model(keys.pop("model_type"), **keys)
    torch.manual_seed(0)
    with torch.device(setup.device):
        model = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, setup.dtype), attn_implementation="sdpa")
    disable_dropout(model)
    return model.requires_grad_(False).eval()


METHODS = {"lora": {}, "dora": {"use_dora": True}}


def build(setup: Setup, *, stream: Stream, method: str = "lora") -> SiameseForCausalLM:
    """A model whose ``stream`` answers; "tuned" is plain PEFT and has no gate."""
    rank, modules = setup.lora_rank, setup.target_modules
    adapter = adapter_from_config("peft.LoraConfig", {"r": rank, "lora_alpha": rank, **METHODS[method]}, modules)
    plain = plain_backbone(setup)
    before = snapshot(plain, adapter.config)
    gate = {"_target_": "imsm.models.siamese.gate.Gate", "inputs": GATE_INPUTS, "rank": setup.gate_rank}
    model = wrap_backbone(
        plain,
        backbone={**setup.backbone, "dtype": setup.dtype},
        adapter=adapter,
        gate=gate if stream == "interwoven" else None,
        pooling="mean",
        stream=stream,
        seed=0,
    )
    model.to(setup.device)  # type: ignore[arg-type]
    check_adapter(model, before)
    return model


def random_batch(setup: Setup, *, vocabulary: int, rows: int | None = None) -> list[TokenizedExample]:
    """Random tokens in the shape of a task's examples; ``rows`` of them, or a batch."""
    generator = torch.Generator().manual_seed(0)
    size = (rows or setup.batch, setup.prompt_tokens + setup.answer_tokens)
    drawn = torch.randint(min(16, vocabulary // 2), vocabulary, size, generator=generator).tolist()
    cut = setup.prompt_tokens
    return [
        TokenizedExample(id=str(i), prompt_ids=tuple(row[:cut]), answer_ids=tuple(row[cut:]))
        for i, row in enumerate(drawn)
    ]
