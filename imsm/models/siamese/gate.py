"""The gate that mixes the original and the tuned hidden states (paper, eq. 4-6).

    g = sigmoid([q_o ; h_o ; h_t ; q_t] W_A W_B)        W_A: nD x R, W_B: R x D, no bias
    h = g * h_o + (1 - g) * h_t

Shapes: B batch, T positions, D hidden size, R gate rank, n number of inputs. h_o and h_t are last
hidden states after the final norm, q_o and q_t the query states.

The variants in ``conf/gate/`` are arguments of one class: the inputs, a gate per dimension or per
token, one learned or fixed value without inputs, a query added to the hidden states,

    g = sigmoid([h_o + c q_o ; h_t + c q_t] W_A W_B)    (`query_scale` c)

and a minimum weight c of the original, h = c h_o + (1 - c) (g h_o + (1 - g) h_t), which equals the
mix above with c + (1 - c) g in place of g (`min_original_weight` c).

A custom gate is a module with ``reads_query`` and ``forward`` as in `Gate`; it is built with
``hidden_size`` and the arguments in its yaml. With a ``query_part`` method, ``forward`` also
receives its result, computed once per answer, in place of the query states.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from imsm.utils.errors import UserError
from imsm.utils.instantiate import import_target

INPUTS = ("query_original", "original", "tuned", "query_tuned")
"""The possible inputs of a gate, in the paper's order of concatenation."""


def build_gate(*, _target_: str, hidden_size: int, **arguments: Any) -> nn.Module:
    """Build the gate class named by ``_target_``.

    Only `nn.Module` classes are accepted, because checkpoints are untrusted.

    Raises:
        UserError: the class cannot be imported, is not a module class, or rejects the arguments.
    """
    try:
        gate_class: Any = import_target(_target_)
    except UserError as error:
        raise UserError(f"gate._target_={error}") from error
    if not (isinstance(gate_class, type) and issubclass(gate_class, nn.Module)):
        raise UserError(f"gate._target_={_target_}: is not a torch.nn.Module class")
    try:
        return gate_class(hidden_size=hidden_size, **arguments)
    except (TypeError, ValueError) as error:
        raise UserError(f"gate._target_={_target_}: rejects its arguments ({error})") from error


def interweave(original: torch.Tensor, tuned: torch.Tensor, gate: torch.Tensor) -> torch.Tensor:
    """Return h = g * h_o + (1 - g) * h_t (eq. 6), (..., D), in the dtype of the hidden states."""
    # lerp(tuned, original, g) is exact at g = 0, at g = 1 and for equal inputs, also in bfloat16
    return torch.lerp(tuned, original, gate.to(tuned.dtype).expand_as(tuned))


class Gate(nn.Module):
    """A low-rank gate; the paper's gate reads all four inputs.

    Args:
        hidden_size: D.
        inputs: the members of ``INPUTS`` to read. Without any, the gate is one value for all
            tokens, learned (``trainable``) or fixed.
        rank: R; required with inputs, None without.
        granularity: "vector" for a gate per dimension, "scalar" for one per token.
        bias: initial value of a bias on the gate's logit; None for no bias, as in the paper.
        init_value: for a gate without inputs, its initial or fixed value: the weight of the
            original in [0, 1], strictly inside if ``trainable``; None means 1/2.
        query_scale: factor c of the query state that is added to each hidden state before the gate
            reads it; None to add none.
        min_original_weight: minimum weight of the original hidden states, in [0, 1).
        dropout: dropout probability of the R features between W_A and W_B.
        trainable: whether the parameters require gradients.

    Raises:
        ValueError: an unknown input, or arguments that contradict each other.
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
            raise ValueError(f"inputs={unknown}: unknown; choose from {list(INPUTS)}")
        if bool(inputs) != (rank is not None):
            raise ValueError(f"rank={rank}: does not fit inputs={list(inputs)}; a gate needs both or neither")
        if init_value is not None and (inputs or bias is not None):
            raise ValueError(f"init_value={init_value}: only for a gate without inputs and bias")
        if init_value is not None and not (0 < init_value < 1 if trainable else 0 <= init_value <= 1):
            raise ValueError(f"init_value={init_value}: must be in [0, 1], and in (0, 1) if trainable")
        if query_scale is not None and (not inputs or set(inputs) - {"original", "tuned"}):
            raise ValueError(f"query_scale={query_scale}: only with inputs 'original', 'tuned' or both")
        if granularity not in ("vector", "scalar"):
            raise ValueError(f"granularity={granularity!r}: must be 'vector' or 'scalar'")
        if not 0 <= min_original_weight < 1:
            raise ValueError(f"min_original_weight={min_original_weight}: must be in [0, 1)")
        self.query_scale, self.min_original_weight = query_scale, min_original_weight
        # in the paper's order: the blocks of W_A do not depend on the order in the yaml
        self.inputs = tuple(name for name in INPUTS if name in inputs)
        channels = hidden_size if granularity == "vector" else 1
        self.dropout = nn.Dropout(dropout)
        self.down = self.up = None
        if rank is not None:
            self.down = nn.Linear(len(self.inputs) * hidden_size, rank, bias=False)  # W_A
            self.up = nn.Linear(rank, channels, bias=False)  # W_B
        if not self.inputs and bias is None:
            bias = _logit(0.5 if init_value is None else init_value)
        self.bias = None if bias is None else nn.Parameter(torch.full((channels,), float(bias)))
        self.requires_grad_(trainable)

    @property
    def reads_query(self) -> bool:
        """Whether the gate needs the query states."""
        reads = "query_original" in self.inputs or "query_tuned" in self.inputs
        return reads or self.query_scale is not None

    def query_part(self, query_original: torch.Tensor | None, query_tuned: torch.Tensor | None) -> torch.Tensor | None:
        """Return the query's share of the R features: [q_o ; q_t] times its rows of W_A.

        The query states (..., D) may be None if the gate does not read them. The result is (..., R),
        or None if it reads no query.
        """
        queries = {"query_original": query_original, "query_tuned": query_tuned}
        part = None
        for name, block in self._blocks().items():
            scale = 1.0
            if self.query_scale is not None:
                # (h + c q) W = h W + c q W, so the query's share can be computed once per answer
                name, scale = f"query_{name}", self.query_scale
            if name in queries:
                query = queries[name]
                if query is None:
                    raise ValueError(f"{name}=None: the gate reads it")
                features = functional.linear(query.to(block.dtype), block)
                # factor 1 skipped: it saves a kernel, and the result is the same bit for bit
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
        """Return the weight g of the original hidden states (eq. 4 and 5), in float32.

        Hidden states are (..., D), query states broadcastable to them or None if the gate does not
        read them. ``query_part`` is the result of `query_part`, used in place of the query states.
        g is in (0, 1): (..., D) for a vector gate, (..., 1) for a scalar one.
        """
        logit = None
        if self.up is not None:
            # [x_1 ; x_2] W_A = x_1 W_A1 + x_2 W_A2, without the concatenated (..., nD) tensor
            features = query_part if query_part is not None else self.query_part(query_original, query_tuned)
            hidden_states = {"original": original, "tuned": tuned}
            for name, block in self._blocks().items():
                if name in hidden_states:
                    # the gate computes in its own dtype (float32), whatever the backbone's
                    part = functional.linear(hidden_states[name].to(block.dtype), block)
                    features = part if features is None else features + part
            logit = self.up(self.dropout(features))
        if self.bias is not None:
            bias = self.bias.expand(*original.shape[:-1], -1)
            logit = bias if logit is None else logit + bias
        assert logit is not None  # a gate without inputs has a bias
        return self.min_original_weight + (1 - self.min_original_weight) * torch.sigmoid(logit)

    def _blocks(self) -> dict[str, torch.Tensor]:
        """Split W_A into one (R, D) block per input."""
        if self.down is None:
            return {}
        blocks = self.down.weight.chunk(len(self.inputs), dim=1)
        return dict(zip(self.inputs, blocks, strict=True))


def _logit(value: float) -> float:
    # not torch.logit: on the meta device a tensor has no value
    if value in (0, 1):
        return math.copysign(math.inf, value - 0.5)
    return math.log(value / (1 - value))
