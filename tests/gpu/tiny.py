"""Tiny models, examples and trainings on the GPU, or on the CPU where there is none."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch

from imsm.data.batching import MicroBatching
from imsm.data.tokenization import TokenizedExample
from imsm.models.adapters.base import AdapterSpec
from imsm.models.siamese.hidden_state_cache import HiddenStateCache
from imsm.models.siamese.model import SiameseForCausalLM
from imsm.training.engines.single_device import SingleDeviceEngine, choose_device
from imsm.training.optimizer import build_lr_scheduler, build_optimizer
from imsm.training.train_step import train_step
from tests.helpers.adapters import lora
from tests.models.siamese.tiny import ATTENTION, padded, prompts, tiny_siamese

DEVICE = choose_device("auto")
"""As a run has it: "cuda" without an index."""
needs_gpu = pytest.mark.skipif(DEVICE.type != "cuda", reason="needs a CUDA device")
both_dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])


def model_on_device(
    dtype: torch.dtype = torch.float32, adapter: AdapterSpec | str = "lora", **options: Any
) -> SiameseForCausalLM:
    model: SiameseForCausalLM = tiny_siamese("llama", adapter, dtype=dtype, **options).to(DEVICE)
    return model


def lora_with_dropout(rate: float) -> AdapterSpec:
    return lora(target_modules=ATTENTION, r=4, lora_alpha=8, lora_dropout=rate)


def examples(count: int = 24) -> list[TokenizedExample]:
    """Examples of different lengths."""
    generator = torch.Generator().manual_seed(4)

    def draw(length: int) -> tuple[int, ...]:
        return tuple(torch.randint(3, 97, (length,), generator=generator).tolist())

    return [TokenizedExample(id=str(i), prompt_ids=draw(4 + i % 7), answer_ids=draw(2 + i % 5)) for i in range(count)]


def padded_inputs(side: str) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """Return the decoder's inputs of padded prompts, and their mask as booleans."""
    ids, mask = (tensor.to(DEVICE) for tensor in padded(prompts(), side=side))
    inputs = {"input_ids": ids, "attention_mask": mask, "position_ids": (mask.cumsum(1) - 1).clamp(min=0)}
    return inputs, mask.bool()


def engine_of(model: SiameseForCausalLM, **options: Any) -> SingleDeviceEngine:
    optimizer = build_optimizer(model, name="adamw", learning_rate=1e-3, gate_learning_rate=None, weight_decay=0.0)
    schedule = build_lr_scheduler(
        optimizer, lr_scheduler_type="constant_with_warmup", warmup_ratio=0.0, num_training_steps=100
    )
    device = next(model.parameters()).device
    # without the index that .to("cuda") has added, as in a run
    return SingleDeviceEngine(
        model,
        optimizer=optimizer,
        lr_scheduler=schedule,
        max_grad_norm=1.0,
        device=torch.device(device.type),
        **options,
    )


def losses(
    model: SiameseForCausalLM,
    *,
    steps: int = 6,
    first: int = 1,
    cache: HiddenStateCache | None = None,
    engine: SingleDeviceEngine | None = None,
    micro_batching: MicroBatching | None = None,
    deterministic: bool = False,
) -> list[float]:
    """Train with batches of eight, by default in micro-batches of four, and return each step's loss."""
    engine = engine or engine_of(model)
    model.train()
    batches: Sequence[list[TokenizedExample]] = [examples()[start : start + 8] for start in (0, 8, 16)]
    options: dict[str, Any] = {
        "engine": engine,
        "callbacks": None,
        "micro_batching": micro_batching or MicroBatching(size=4),
        "pad_id": 0,
        "deterministic": deterministic,
    }
    return [
        train_step([batches[step % 3]], step=step, hidden_state_cache=cache, **options)["loss"]
        for step in range(first, first + steps)
    ]
