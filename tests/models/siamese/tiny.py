"""Tiny random backbones with perturbed adapters; an initial adapter would hide wrong streams."""

from __future__ import annotations

from itertools import product
from typing import Any

import torch
from peft import PeftModel
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from imsm.models.adapters.adalora import adalora
from imsm.models.adapters.base import AdapterSpec, attach_adapter
from imsm.models.backbones.loading import disable_dropout
from imsm.models.siamese.config import SiameseConfig
from imsm.models.siamese.gate import build_gate
from imsm.models.siamese.model import SiameseForCausalLM
from tests.helpers.adapters import dora, ia3, lora

COMMON = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "attention_dropout": 0.1,
}
ARCHITECTURES = {
    "llama": {"model_type": "llama", **COMMON},
    "qwen2": {"model_type": "qwen2", **COMMON, "tie_word_embeddings": True},
    "gemma3": {
        "model_type": "gemma3_text",
        **COMMON,
        "head_dim": 8,
        "sliding_window": 8,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        "query_pre_attn_scalar": 1,
        "tie_word_embeddings": True,
    },
}
ATTENTION = ["q_proj", "v_proj"]
ADAPTERS = {
    "lora": lambda: lora(target_modules=ATTENTION, r=4, lora_alpha=8, lora_dropout=0.0),
    "dora": lambda: dora(target_modules=ATTENTION, r=4, lora_alpha=8, lora_dropout=0.0),
    "ia3": lambda: ia3(target_modules=["k_proj", "v_proj", "down_proj"], feedforward_modules=["down_proj"]),
    "adalora": lambda: adalora(
        target_modules=ATTENTION,
        init_r=6,
        target_r=3,
        lora_alpha=8,
        lora_dropout=0.0,
        tinit_ratio=0.1,
        tfinal_ratio=0.2,
        deltaT=1,
        orth_reg_weight=0.5,
    ),
}
CASES = list(product(ARCHITECTURES, ADAPTERS))
"""All pairs of an architecture and a PEFT method."""
QUERY_GATE = {
    "_target_": "imsm.models.siamese.gate.Gate",
    "inputs": ["query_original", "original", "tuned", "query_tuned"],
    "rank": 4,
}


def tiny_backbone(architecture: str, *, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """Build a random model with sharp attention that does not repeat one token."""
    arguments = dict(ARCHITECTURES[architecture])
    config = AutoConfig.for_model(arguments.pop("model_type"), **arguments)
    torch.manual_seed(11)
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.add_(0.5 * torch.randn(parameter.shape))
            elif "embed" not in name:
                parameter.mul_(10)
    disable_dropout(model)
    return model.to(dtype).requires_grad_(False).eval()


def perturb(model: torch.nn.Module, *, scale: float = 0.3) -> None:
    """Add noise to every trainable parameter."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(scale * torch.randn(parameter.shape, generator=generator))


def tiny_siamese(
    architecture: str = "llama",
    method: str | AdapterSpec = "lora",
    *,
    gate: dict | None = QUERY_GATE,
    pooling: str = "mean",
    dtype: torch.dtype = torch.float32,
    source: dict | None = None,
    backbone: PreTrainedModel | None = None,
) -> SiameseForCausalLM:
    """Build a siamese model with a perturbed adapter and gate; ``backbone`` is a loaded copy of `tiny_backbone`."""
    backbone = backbone or tiny_backbone(architecture, dtype=dtype)
    adapter = ADAPTERS[method]() if isinstance(method, str) else method
    torch.manual_seed(12)
    adapted: PeftModel = attach_adapter(adapter, backbone)
    built = build_gate(hidden_size=32, **gate) if gate is not None else None
    config = SiameseConfig(
        text_config=backbone.config,
        backbone=source or {"name_or_path": "tiny"},
        gate=gate,
        pooling=pooling,
        stream="interwoven" if gate is not None else "tuned",
    )
    model = SiameseForCausalLM(config, adapted, built)
    perturb(model)
    return model.eval()


def prompts(batch: int = 3, longest: int = 12) -> list[list[int]]:
    """Return prompts of different lengths, at least 3."""
    generator = torch.Generator().manual_seed(3)
    return [
        torch.randint(3, 97, (longest - 3 * row % (longest - 2),), generator=generator).tolist()
        for row in range(batch)
    ]


def padded(rows: list[list[int]], *, side: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Return token ids and attention mask, padded with 0 on the given side."""
    width = max(map(len, rows))
    ids, mask = [], []
    for row in rows:
        gap = [0] * (width - len(row))
        ids.append(gap + row if side == "left" else row + gap)
        ones = [1] * len(row)
        mask.append(gap + ones if side == "left" else ones + gap)
    return torch.tensor(ids), torch.tensor(mask)


def marked(rows: list[list[int]], queries: list[int], *, side: str) -> torch.Tensor:
    """Return the query mask of padded rows: the first ``queries[i]`` tokens of row i."""
    width = max(map(len, rows))
    masks = []
    for row, query in zip(rows, queries, strict=True):
        gap = [0] * (width - len(row))
        ones = [1] * query + [0] * (len(row) - query)
        masks.append(gap + ones if side == "left" else ones + gap)
    return torch.tensor(masks)


ANSWER = 3
"""Length of the answers of `labelled_batch`."""


def labelled_batch(*, side: str) -> tuple[list[list[int]], dict[str, torch.Tensor]]:
    """Return three rows and their model inputs; the last ``ANSWER`` tokens are labels."""
    rows = prompts()
    ids, mask = padded(rows, side=side)
    query = marked(rows, [len(row) - ANSWER for row in rows], side=side)
    labels = ids.where((mask - query).bool(), -100)
    return rows, {"input_ids": ids, "attention_mask": mask, "labels": labels}


def decoded(model: SiameseForCausalLM, row: list[int], **options: Any) -> list[int]:
    """Return the tokens that ``generate`` adds to one prompt."""
    options = {"max_new_tokens": 8, "do_sample": False, **options}
    return model.generate(torch.tensor([row]), **options)[0, len(row) :].tolist()


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """Build a tokenizer with the words "w3" ... "w96" for the tokens 3 ... 96."""
    vocabulary = {"<pad>": 0, "<bos>": 1, "<eos>": 2, **{f"w{i}": i for i in range(3, 97)}}
    words = Tokenizer(WordLevel(vocabulary, unk_token="<pad>"))
    words.pre_tokenizer = Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>", padding_side="left"
    )
