"""The gate that interweaves the original and the tuned memory (paper, eq. 4-6).

    g = sigmoid([q_o ; h_o ; h_t ; q_t] W_A W_B)        W_A: nD x R, W_B: R x D, no bias
    h = g * h_o + (1 - g) * h_t

Legend: B batch, T positions, D width of a memory, R gate rank, n number of inputs.
A memory is the last hidden state after the final norm; q_o and q_t are the query memories.

The variants (`conf/gate/`) are arguments of the one class: which memories it reads, a gate per
dimension or per token, one learned or fixed value without any input, and two of the released
code's: a query that is added to the memories instead of concatenated,

    g = sigmoid([h_o + c q_o ; h_t + c q_t] W_A W_B)    (`added_query` c)

and an original memory that always keeps a share, h = c h_o + (1 - c) (g h_o + (1 - g) h_t), which
is the same mix with c + (1 - c) g in place of g (`floor` c).

A gate of one's own is a module with ``Gate``'s ``reads_query`` and ``forward``; it is built with
``hidden_size`` and the arguments of its yaml. If it has a ``query_part`` too, its forward takes
what that gives in place of the query memories, computed once for a whole answer.
"""

from __future__ import annotations

import math
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
        value: what a gate without inputs starts from (trained) or stays at: the weight of the
            original memory, in [0, 1], strictly inside where it is trained; None: 1/2.
        added_query: c, the share of a query memory that is added to the memory of its stream
            before the gate reads that; None: the query is an input of its own or none.
        floor: the least weight of the original memory, in [0, 1).
        dropout: probability of dropping the R features between W_A and W_B.
        trained: whether the gate's values learn.

    Raises:
        ValueError: an input that does not exist, or arguments that do not fit each other.
    """

    def __init__(
        self,
        *,
        hidden_size: int,
        inputs: Sequence[str],
        rank: int | None,
        granularity: str = "vector",
        bias: float | None = None,
        init_value: float | None = None,
        query_scale: float | None = None,
        min_original_weight: float = 0.0,
        dropout: float = 0.0,
        trainable: bool = True,
    ) -> None:
        super().__init__()
        unknown = sorted(set(inputs) - set(INPUTS))
        if unknown:
            raise ValueError(f"a gate cannot read {unknown}; it reads some of {list(INPUTS)}")
        if bool(inputs) != (rank is not None):
            raise ValueError(f"rank={rank} does not fit a gate with the inputs {list(inputs)}")
        if init_value is not None and (inputs or bias is not None):
            raise ValueError(f"value={init_value}: only a gate without inputs and bias has a value")
        if init_value is not None and not (0 < init_value < 1 if trainable else 0 <= init_value <= 1):
            raise ValueError(f"value={init_value} of a gate: in 0..1, and inside if it is trained")
        if query_scale is not None and (not inputs or set(inputs) - {"original", "tuned"}):
            raise ValueError("added_query: for a gate that reads original, tuned or both alone")
        if granularity not in ("vector", "scalar"):
            raise ValueError(f"width={granularity!r} of a gate is neither 'vector' nor 'scalar'")
        if not 0 <= min_original_weight < 1:
            raise ValueError(f"floor={min_original_weight} of a gate: must be at least 0 and below 1")
        self.added_query, self.floor = query_scale, min_original_weight
        self.inputs = tuple(name for name in INPUTS if name in inputs)
        channels = hidden_size if granularity == "vector" else 1
        self.dropout = nn.Dropout(dropout)
        self.down = self.up = None
        if rank is not None:
            self.down = nn.Linear(len(self.inputs) * hidden_size, rank, bias=False)  # W_A
            self.up = nn.Linear(rank, channels, bias=False)  # W_B
        if not self.inputs and bias is None:
            bias = _logit(0.5 if init_value is None else init_value)
        start = None if bias is None else torch.full((channels,), float(bias))
        self.bias = None if start is None else nn.Parameter(start)
        self.requires_grad_(trainable)

    @property
    def reads_query(self) -> bool:
        """Whether the gate needs the query memories at all."""
        reads = "query_original" in self.inputs or "query_tuned" in self.inputs
        return reads or self.added_query is not None

    def query_part(self, query_original: torch.Tensor | None, query_tuned: torch.Tensor | None) -> torch.Tensor | None:
        """What the query memories add to the features: [q_o ; q_t] times their rows of W_A.

        Args:
            query_original: q_o, (..., D); None if the gate does not read it.
            query_tuned: q_t, likewise.

        Returns:
            (..., R); None where the gate reads no query.
        """
        queries = {"query_original": query_original, "query_tuned": query_tuned}
        part = None
        for name, block in self._blocks().items():
            scale = 1.0
            if self.added_query is not None:  # (h + c q) W = h W + c q W
                name, scale = f"query_{name}", self.added_query
            if name in queries:
                features = functional.linear(_given(queries, name).to(block.dtype), block)
                features = features if scale == 1.0 else scale * features
                part = features if part is None else part + features
        return part

    def forward(
        self,
        original: torch.Tensor,
        tuned: torch.Tensor,
        query_original: torch.Tensor | None,
        query_tuned: torch.Tensor | None,
        query_part: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Eq. 4 and 5: the weight of the original memory, in float32.

        Args:
            original: h_o, (..., D).
            tuned: h_t, (..., D).
            query_original: q_o, broadcastable to (..., D); None if the gate does not read it.
            query_tuned: q_t, likewise.
            query_part: what `query_part` gave for them; they are not looked at then.

        Returns:
            g in (0, 1), (..., D) for a vector gate, (..., 1) for a scalar one.
        """
        logit = None
        if self.up is not None:
            # [x_1 ; x_2] W_A = x_1 W_A1 + x_2 W_A2: nothing is concatenated
            features = query_part
            if features is None:
                features = self.query_part(query_original, query_tuned)
            memories = {"original": original, "tuned": tuned}
            for name, block in self._blocks().items():
                if name in memories:
                    part = functional.linear(memories[name].to(block.dtype), block)
                    features = part if features is None else features + part
            logit = self.up(self.dropout(features))
        if self.bias is not None:
            bias = self.bias.expand(*original.shape[:-1], -1)
            logit = bias if logit is None else logit + bias
        assert logit is not None  # without inputs there is a bias
        return self.floor + (1 - self.floor) * torch.sigmoid(logit)

    def _blocks(self) -> dict[str, torch.Tensor]:
        """The rows of W_A for each input, (R, D) each."""
        if self.down is None:
            return {}
        blocks = self.down.weight.chunk(len(self.inputs), dim=1)
        return dict(zip(self.inputs, blocks, strict=True))


def _logit(value: float) -> float:
    """The logit of a value in [0, 1]; plain numbers, since a plan's tensors have no values."""
    if value in (0, 1):
        return math.copysign(math.inf, value - 0.5)
    return math.log(value / (1 - value))


def _given(memories: dict[str, torch.Tensor | None], name: str) -> torch.Tensor:
    memory = memories[name]
    if memory is None:
        raise ValueError(f"the gate reads {name}, which was not given")
    return memory


def interweave(original: torch.Tensor, tuned: torch.Tensor, gate: torch.Tensor) -> torch.Tensor:
    """Eq. 6: h = g * h_o + (1 - g) * h_t, (..., D), in the memories' dtype.

    A lerp is exact at g = 0, at g = 1 and where both memories are equal, in bfloat16 too.
    """
    return torch.lerp(tuned, original, gate.to(tuned.dtype).expand_as(tuned))
