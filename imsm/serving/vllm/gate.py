"""The gate, as in `imsm.models.siamese.gate`, whose module the plugin cannot import.

    g = c + (1 - c) sigmoid([q_o ; h_o ; h_t ; q_t] W_A W_B + b)

Shapes: N tokens, D hidden size, R rank, C channels (D or 1).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn
from torch.nn import functional

PREFIX = "gate."
"""Start of the names of the gate's tensors: the blocks of W_A by input, `up` and `bias`."""
QUERIES = {"query_original": "original", "query_tuned": "tuned"}
"""Inputs of the gate that are means over the prompt, and the hidden states that are averaged."""


class Gate(nn.Module):
    """A low-rank or constant gate in float32, without the query's mean (`imsm.serving.vllm.query_memory`).

    Args:
        inputs: names of the hidden and query states that the gate reads.
        min_original_weight: c, the minimum weight of the original.
    """

    up: torch.Tensor
    bias: torch.Tensor | None

    def __init__(self, *, inputs: list[str], min_original_weight: float) -> None:
        super().__init__()
        self.inputs, self.minimum = inputs, min_original_weight

    @property
    def reads_query(self) -> bool:
        """Whether an input is a query state."""
        return not QUERIES.keys().isdisjoint(self.inputs)

    def load(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Take over the tensors of an exported gate.

        Raises:
            ValueError: they are not those of the configuration.
        """
        expected = {*self.inputs, *(["up"] if self.inputs else ["bias"])}
        if tensors.keys() - {"bias"} != expected - {"bias"}:
            raise ValueError(f"gate: has {sorted(tensors)} in place of {sorted(expected)}; export the run again")
        for name in (*self.inputs, "up", "bias"):
            tensor = tensors.get(name)
            self.register_buffer(name, None if tensor is None else tensor.float(), persistent=False)

    def query_part(self, original: torch.Tensor, tuned: torch.Tensor) -> torch.Tensor:
        """Return the share of each token in the query's features before the mean, (N, R)."""
        hidden = {"original": original, "tuned": tuned}
        parts = [self._features(name, hidden[source]) for name, source in QUERIES.items() if name in self.inputs]
        return torch.stack(parts).sum(dim=0)

    def forward(self, original: torch.Tensor, tuned: torch.Tensor, query: torch.Tensor | None) -> torch.Tensor:
        """Return the weight of the original, (N, C); ``query`` (N, R) is the mean of `query_part`."""
        hidden = {"original": original, "tuned": tuned}
        parts = [self._features(name, hidden[name]) for name in self.inputs if name in hidden]
        if query is not None:
            parts.append(query.float())
        logit: torch.Tensor | None = functional.linear(torch.stack(parts).sum(dim=0), self.up) if parts else None
        if self.bias is not None:
            logit = self.bias.expand(len(original), -1) if logit is None else logit + self.bias
        assert logit is not None
        return self.minimum + (1 - self.minimum) * torch.sigmoid(logit)

    def _features(self, name: str, hidden: torch.Tensor) -> torch.Tensor:
        return functional.linear(hidden.float(), getattr(self, name))
