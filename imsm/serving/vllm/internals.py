"""What the plugin uses of vLLM beyond its public interfaces; checked with vLLM 0.32.

- `Attention.__init__` is replaced while a model is built: the stock model classes name the class directly, and the
  number of heads cannot be changed later, because the attention backends derive values from it.
- `MODELS_CONFIG_MAP` is vLLM's table of adjustments per architecture, without a function to register one.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from vllm.config import VllmConfig
from vllm.model_executor.layers.attention import Attention
from vllm.model_executor.models.config import MODELS_CONFIG_MAP, VerifyAndUpdateConfig

REQUEST_TABLES = {
    True: "imsm.serving.vllm.requests:RequestTable",
    False: "imsm.serving.vllm.requests:RequestTableWithoutGate",
}
"""Logits processors of models with and without a gate."""
GATE_WORKER = "imsm.serving.vllm.gate_records.GateWorker"


@contextmanager
def two_streams_per_head() -> Iterator[None]:
    """Build each attention layer for both streams, with twice the heads, inside this block.

    Its inputs (2N, heads * size) become (N, 2 * heads * size): the heads of the original stream, then those of the
    tuned one. Grouped queries keep their group, so no head reads keys of the other stream.
    """
    stock = Attention.__init__

    def init(
        self: Attention, num_heads: int, head_size: int, scale: float, num_kv_heads: int | None = None, **options: Any
    ) -> None:
        per_head = sorted({"alibi_slopes", "sinks"} & {name for name, value in options.items() if value is not None})
        if per_head:
            raise ValueError(f"{per_head[0]}: a value per attention head is not supported with two streams")
        stock(self, 2 * num_heads, head_size, scale, num_kv_heads=2 * (num_kv_heads or num_heads), **options)
        self.register_forward_pre_hook(_join_streams)
        self.register_forward_hook(_split_streams)

    Attention.__init__ = init
    try:
        yield
    finally:
        Attention.__init__ = stock


def _join_streams(_: nn.Module, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    """Turn (2N, width) into (N, 2 * width)."""
    return tuple(torch.cat(each.flatten(1).chunk(2), dim=1) for each in inputs)


def _split_streams(_: nn.Module, __: Any, output: torch.Tensor) -> torch.Tensor:
    """Turn (N, 2 * width) into (2N, width)."""
    return torch.cat(output.chunk(2, dim=1))


def register_config_hook(architecture: str) -> None:
    """Adjust vLLM's configuration when it serves ``architecture``."""
    MODELS_CONFIG_MAP[architecture] = SiameseConfigHook


class SiameseConfigHook(VerifyAndUpdateConfig):
    """Rejects features that do not know two streams, and enables the plugin's request arguments."""

    @staticmethod
    def verify_and_update_config(vllm_config: VllmConfig) -> None:
        """Check and adjust the configuration before vLLM derives others from it.

        Raises:
            ValueError: a feature that the plugin does not support is enabled.
        """
        parallel = vllm_config.parallel_config
        unsupported = {
            "--tensor-parallel-size": parallel.tensor_parallel_size > 1,
            "--pipeline-parallel-size": parallel.pipeline_parallel_size > 1,
            "--enable-lora": vllm_config.lora_config is not None,
            "--speculative-config": vllm_config.speculative_config is not None,
            "--enable-prompt-embeds": vllm_config.model_config.enable_prompt_embeds,
        }
        for option, enabled in unsupported.items():
            if enabled:
                raise ValueError(f"{option}: is not supported for a model with two streams; omit it")
        if vllm_config.use_v2_model_runner:
            # it has another interface of logits processors
            raise ValueError("VLLM_USE_V2_MODEL_RUNNER: the plugin needs the other model runner; set it to 0")
        model_config = vllm_config.model_config
        # tensors of the batch are made in each pass, which a CUDA graph would not see
        model_config.enforce_eager = True
        parallel.worker_extension_cls = parallel.worker_extension_cls or GATE_WORKER
        has_gate = model_config.hf_config.imsm["gate"] is not None
        model_config.logits_processors = [*(model_config.logits_processors or ()), REQUEST_TABLES[has_gate]]
