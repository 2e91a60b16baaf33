"""Siamese models on vLLM's own model classes.

Shapes: N tokens of a batch, D hidden size, R gate rank, C channels of the gate (D or 1).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import nn
from vllm.config import VllmConfig
from vllm.forward_context import get_forward_context
from vllm.model_executor.layers.attention import Attention
from vllm.model_executor.models.gemma3 import Gemma3ForCausalLM
from vllm.model_executor.models.llama import LlamaForCausalLM
from vllm.model_executor.models.mistral import MistralForCausalLM
from vllm.model_executor.models.qwen2 import Qwen2ForCausalLM
from vllm.model_executor.models.qwen3 import Qwen3ForCausalLM

from imsm.serving.vllm.deltas import Deltas
from imsm.serving.vllm.gate import PREFIX as GATE_PREFIX
from imsm.serving.vllm.gate import Gate
from imsm.serving.vllm.gate_records import GateRecords
from imsm.serving.vllm.internals import two_streams_per_head
from imsm.serving.vllm.query_memory import QueryMemory
from imsm.serving.vllm.requests import STREAMS, RequestTable

_PREFIX = "imsm."
"""Start of the names of tensors that are not the backbone's."""


class SiameseMixin(nn.Module):
    """Runs the stock model on the rows of both streams, and mixes their hidden states by the gate."""

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        with two_streams_per_head():
            super().__init__(vllm_config=vllm_config, prefix=prefix)
        model_config = vllm_config.model_config
        settings: dict[str, Any] = model_config.hf_config.imsm
        layers = [module for module in self.modules() if isinstance(module, Attention)]
        self.deltas = Deltas()
        self.gate = Gate(**settings["gate"]) if settings["gate"] else None
        self.default_weight = STREAMS["interwoven" if self.gate is not None else "tuned"]
        self.query_memory = None
        if self.gate is not None and self.gate.reads_query:
            self.query_memory = QueryMemory(
                layers[0],
                cache_config=vllm_config.cache_config,
                first_layer=model_config.hf_config.num_hidden_layers,
                max_positions=model_config.max_model_len,
                pooling=settings["pooling"],
            )
        self.gate_records = GateRecords()
        self.instance_id, self.layer_name = vllm_config.instance_id, layers[0].layer_name

    def forward(
        self,
        input_ids: torch.Tensor | None,
        positions: torch.Tensor,
        intermediate_tensors: Any = None,
        inputs_embeds: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Return the head's inputs (N, D)."""
        assert input_ids is not None and intermediate_tensors is None and inputs_embeds is None
        both = super().forward(torch.cat([input_ids, input_ids]), torch.cat([positions, positions]))
        original, tuned = both.chunk(2)
        lengths, weights, records = self._rows(positions)
        if self.gate is None:
            weight = weights[:, None]
        else:
            part = None
            if self.query_memory is not None:
                part = self.gate.query_part(original, tuned).to(original.dtype)
                part = self.query_memory(part, positions, torch.minimum(positions, lengths - 1))
            gate = self.gate(original, tuned, part)
            weight = torch.where(weights.isnan()[:, None], gate, weights[:, None])
            if records:
                names, rows = zip(*records.items(), strict=True)
                numbers = (positions - lengths + 1)[list(rows)].tolist()
                self.gate_records.add(names, numbers, gate[list(rows)])
        return torch.lerp(tuned, original, weight.to(tuned.dtype).expand_as(tuned))

    def _rows(self, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, dict[str, int]]:
        """Return prompt length and constant weight of each token's request, (N,), and the rows whose gate is recorded.

        A constant weight of NaN means the gate's.
        """
        count, device = len(positions), positions.device
        lengths = torch.full((count,), torch.iinfo(torch.int64).max, device=device)
        weights = torch.full((count,), self.default_weight, device=device)
        metadata: Any = get_forward_context().attn_metadata
        requests = RequestTable.of_engine[self.instance_id].requests
        if not metadata or not requests:  # a profiling run
            return lengths, weights, {}
        starts = metadata[self.layer_name].query_start_loc
        rows = [requests[index] for index in range(len(starts) - 1)]
        counts, used = starts.diff(), int(starts[-1])
        constant = [self.default_weight if row.weight is None else row.weight for row in rows]
        lengths[:used] = torch.tensor([row.prompt_length for row in rows], device=device).repeat_interleave(counts)
        weights[:used] = torch.tensor(constant, device=device).repeat_interleave(counts)
        if self.gate is None:
            weights = weights.nan_to_num(self.default_weight)
        recorded = {row.record: int(end) - 1 for row, end in zip(rows, starts[1:], strict=True) if row.record}
        # the last row of a request predicts a token unless it is inside the prompt
        ends = {name: row for name, row in recorded.items() if positions[row] >= lengths[row] - 1}
        return lengths, weights, ends

    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> set[str]:
        """Load the backbone as the stock model does, then the tuned stream's changes and the gate."""
        own: dict[str, torch.Tensor] = {}

        def backbone() -> Iterator[tuple[str, torch.Tensor]]:
            for name, tensor in weights:
                if name.startswith(_PREFIX):
                    own[name.removeprefix(_PREFIX)] = tensor
                else:
                    yield name, tensor

        loaded: set[str] = super().load_weights(backbone())  # type: ignore[misc]
        reference = next(self.parameters())
        if self.gate is not None:
            self.gate.load({n.removeprefix(GATE_PREFIX): own.pop(n) for n in list(own) if n.startswith(GATE_PREFIX)})
            self.gate.to(reference.device)
        self.deltas.attach(self, own, dtype=reference.dtype, device=reference.device)
        return loaded


class SiameseGemma3ForCausalLM(SiameseMixin, Gemma3ForCausalLM):
    """Gemma 3 (text)."""


class SiameseLlamaForCausalLM(SiameseMixin, LlamaForCausalLM):
    """Llama and models of its architecture."""


class SiameseMistralForCausalLM(SiameseMixin, MistralForCausalLM):
    """Mistral."""


class SiameseQwen2ForCausalLM(SiameseMixin, Qwen2ForCausalLM):
    """Qwen 2 and 2.5."""


class SiameseQwen3ForCausalLM(SiameseMixin, Qwen3ForCausalLM):
    """Qwen 3."""
