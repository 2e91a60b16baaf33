"""The gate that interweaves the original and the tuned memory (paper, eq. 4-6).

    g = sigmoid([q_o ; h_o ; h_t ; q_t] W_A W_B)        W_A: nD x R, W_B: R x D, no bias
    h = g * h_o + (1 - g) * h_t

Legend: B batch, T positions, D width of a memory, R gate rank, n number of inputs.
A memory is the last hidden state after the final norm; q_o and q_t are the query memories.

A gate of one's own is a module with ``Gate``'s ``reads_query`` and ``forward``; it is built with
``hidden_size`` and the arguments of its yaml.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional

INPUTS = ("query_original", "original", "tuned", "query_tuned")
"""The inputs that a gate can read, in the paper's order of concatenation."""


class Gate(nn.Module):
    """A low-rank gate with a choice of inputs; the paper's gate reads all four.

    Args:
        hidden_size: D, the width of a memory.
        inputs: which of ``INPUTS`` the gate reads. Without any, the gate is one learned
            (``trained``) or fixed value, the same for every token.
        rank: R. Needed when the gate has inputs, meaningless (None) when it has none.
        width: "vector" for one gate per dimension, "scalar" for one per token.
        bias: initial value of a bias on the gate's logit; None for no bias, as in the paper.
        dropout: probability of dropping the R features between W_A and W_B.
        trained: whether the gate's values learn.

    Raises:
        ValueError: an input that does not exist, or a rank that does not fit the inputs.
    """

    def __init__(
        self,
        *,
        hidden_size: int,
        inputs: Sequence[str],
        rank: int | None,
        width: str = "vector",
        bias: float | None = None,
        dropout: float = 0.0,
        trained: bool = True,
    ) -> None:
        super().__init__()
        unknown = sorted(set(inputs) - set(INPUTS))
        if unknown:
            raise ValueError(f"a gate cannot read {unknown}; it reads some of {list(INPUTS)}")
        if bool(inputs) != (rank is not None):
            raise ValueError(f"rank={rank} does not fit a gate with the inputs {list(inputs)}")
        if width not in ("vector", "scalar"):
            raise ValueError(f"width={width!r} of a gate is neither 'vector' nor 'scalar'")
        self.inputs = tuple(name for name in INPUTS if name in inputs)
        channels = hidden_size if width == "vector" else 1
        self.dropout = nn.Dropout(dropout)
        self.down = self.up = None
        if rank is not None:
            self.down = nn.Linear(len(self.inputs) * hidden_size, rank, bias=False)  # W_A
            self.up = nn.Linear(rank, channels, bias=False)  # W_B
        needs_bias = bias is not None or not self.inputs
        self.bias = nn.Parameter(torch.full((channels,), bias or 0.0)) if needs_bias else None
        self.requires_grad_(trained)

    @property
    def reads_query(self) -> bool:
        """Whether the gate needs the query memories at all."""
        return "query_original" in self.inputs or "query_tuned" in self.inputs

    def forward(
        self,
        original: torch.Tensor,
        tuned: torch.Tensor,
        query_original: torch.Tensor | None,
        query_tuned: torch.Tensor | None,
    ) -> torch.Tensor:
        """Eq. 4 and 5: the weight of the original memory, in float32.

        Args:
            original: h_o, (..., D).
            tuned: h_t, (..., D).
            query_original: q_o, broadcastable to (..., D); None if the gate does not read it.
            query_tuned: q_t, likewise.

        Returns:
            g in (0, 1), (..., D) for a vector gate, (..., 1) for a scalar one.
        """
        logit = None
        if self.down is not None and self.up is not None:
            given = {
                "query_original": query_original,
                "original": original,
                "tuned": tuned,
                "query_tuned": query_tuned,
            }
            # [x_1 ; x_2] W_A = x_1 W_A1 + x_2 W_A2: nothing is concatenated, and the query's part
            # is computed once per query, not once per token.
            blocks = self.down.weight.chunk(len(self.inputs), dim=1)
            features = None
            for name, block in zip(self.inputs, blocks, strict=True):
                memory = given[name]
                if memory is None:
                    raise ValueError(f"the gate reads {name}, which was not given")
                part = functional.linear(memory.to(block.dtype), block)
                features = part if features is None else features + part
            logit = self.up(self.dropout(features))
        if self.bias is not None:
            bias = self.bias.expand(*original.shape[:-1], -1)
            logit = bias if logit is None else logit + bias
        assert logit is not None  # without inputs there is a bias
        return torch.sigmoid(logit)


def interweave(original: torch.Tensor, tuned: torch.Tensor, gate: torch.Tensor) -> torch.Tensor:
    """Eq. 6: h = g * h_o + (1 - g) * h_t, (..., D), in the memories' dtype.

    A lerp is exact at g = 0, at g = 1 and where both memories are equal, in bfloat16 too.
    """
    return torch.lerp(tuned, original, gate.to(tuned.dtype).expand_as(tuned))
