"""The gate that mixes the original and the tuned hidden states (paper, eq. 4-6).

    g = sigmoid([q_o ; h_o ; h_t ; q_t] W_A W_B)        W_A: nD x R, W_B: R x D, no bias
    h = g * h_o + (1 - g) * h_t

Shapes: B batch, T positions, D hidden size, R gate rank, n number of inputs. h_o and h_t are last
hidden states after the final norm, q_o and q_t the query states.

The variants in ``conf/gate/`` are arguments of one class: the inputs, a gate per dimension or per
token, one learned or fixed value without inputs, a share c of the query in the hidden states
(`query_share`), which gate and mix then read in place of h_o and h_t,

    h_o' = (1 - c) h_o + c q_o        h_t' = (1 - c) h_t + c q_t

and a minimum weight c of the original, h = c h_o + (1 - c) (g h_o + (1 - g) h_t), which equals the
mix above with c + (1 - c) g in place of g (`min_original_weight` c).

A custom gate is a module with ``reads_query`` and ``forward`` as in `Gate`; it is built with
``hidden_size`` and the arguments in its yaml. With a ``query_part`` method, ``forward`` also
receives its result, computed once per answer, in place of the query states. The result of a
``with_query`` method replaces the hidden states.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from imsm.utils.errors import UserError, first_line
from imsm.utils.trust import GATES, import_trusted

INPUTS = ("query_original", "original", "tuned", "query_tuned")
"""The possible inputs of a gate, in the paper's order of concatenation."""


def build_gate(*, _target_: str, hidden_size: int, **arguments: Any) -> nn.Module:
    """Build the gate class named by ``_target_``.

    Only trusted `nn.Module` classes are accepted (`imsm.utils.trust`), because checkpoints are untrusted.

    Raises:
        UserError: the class is not trusted, is not a module class, or rejects the arguments.
    """
    gate_class: Any = import_trusted(_target_, within=GATES, key="gate._target_")
    if not (isinstance(gate_class, type) and issubclass(gate_class, nn.Module)):
        raise UserError(f"gate._target_={_target_}: is not a torch.nn.Module class")
    try:
        return gate_class(hidden_size=hidden_size, **arguments)
    # RuntimeError: a size beyond the memory
    except (RuntimeError, TypeError, ValueError) as error:
        raise UserError(f"gate._target_={_target_}: rejects its arguments ({first_line(error)})") from error


def interweave(original: torch.Tensor, tuned: torch.Tensor, gate: torch.Tensor) -> torch.Tensor:
    """Return h = g * h_o + (1 - g) * h_t (eq. 6), (..., D), in the dtype of the hidden states."""
    # lerp(tuned, original, g) is exact at g = 0, at g = 1 and for equal inputs, also in bfloat16
    return torch.lerp(tuned, original, gate.to(tuned.dtype).expand_as(tuned))


def apply_gate(
    gate: nn.Module, original: torch.Tensor, tuned: torch.Tensor, *queries: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return h (..., D) of eq. 4-6 and the gate's g; ``queries`` are the gate's further arguments."""
    with_query = getattr(gate, "with_query", None)
    if with_query is not None:
        original, tuned = with_query(original, tuned, *queries[:2])
    weight: torch.Tensor = gate(original, tuned, *queries)
    return interweave(original, tuned, weight), weight


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
        query_share: share c of the query state in each hidden state, see `with_query`; None for none.
        min_original_weight: minimum weight of the original hidden states, in [0, 1).
        dropout: dropout probability of the R features between W_A and W_B.
        output_dropout: dropout probability of the gate's logit; a dropped one gives g = 1/2.
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
        query_share: float | None = None,
        min_original_weight: float = 0.0,
        dropout: float = 0.0,
        output_dropout: float = 0.0,
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
        if query_share is not None and (not inputs or set(inputs) - {"original", "tuned"}):
            raise ValueError(f"query_share={query_share}: only with inputs 'original', 'tuned' or both")
        if not 0 <= (query_share or 0) <= 1:
            raise ValueError(f"query_share={query_share}: must be in [0, 1]")
        if granularity not in ("vector", "scalar"):
            raise ValueError(f"granularity={granularity!r}: must be 'vector' or 'scalar'")
        if not 0 <= min_original_weight < 1:
            raise ValueError(f"min_original_weight={min_original_weight}: must be in [0, 1)")
        self.query_share, self.min_original_weight = query_share, min_original_weight
        # in the paper's order: the blocks of W_A do not depend on the order in the yaml
        self.inputs = tuple(name for name in INPUTS if name in inputs)
        channels = hidden_size if granularity == "vector" else 1
        self.dropout, self.output_dropout = nn.Dropout(dropout), nn.Dropout(output_dropout)
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
        return reads or self.query_share is not None

    def with_query(
        self,
        original: torch.Tensor,
        tuned: torch.Tensor,
        query_original: torch.Tensor | None,
        query_tuned: torch.Tensor | None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return h_o' and h_t', the hidden states that are gated and mixed, in their own dtype."""
        share = self.query_share
        if share is None:
            return original, tuned
        if query_original is None or query_tuned is None:
            raise ValueError("query_original, query_tuned: the gate reads both")

        def mixed(hidden: torch.Tensor, query: torch.Tensor) -> torch.Tensor:
            return torch.lerp(hidden.to(query.dtype), query.expand_as(hidden), share).to(hidden.dtype)

        return mixed(original, query_original), mixed(tuned, query_tuned)

    def query_part(self, query_original: torch.Tensor | None, query_tuned: torch.Tensor | None) -> torch.Tensor | None:
        """Return the query's share of the R features: [q_o ; q_t] times its rows of W_A.

        The query states (..., D) may be None if the gate does not read them. The result is (..., R),
        or None if it reads no query.
        """
        queries = {"query_original": query_original, "query_tuned": query_tuned}
        part = None
        for name, block in self._blocks().items():
            if name in queries:
                query = queries[name]
                if query is None:
                    raise ValueError(f"{name}=None: the gate reads it")
                features = functional.linear(query.to(block.dtype), block)
                part = features if part is None else part + features
        return part

    def logit(
        self,
        original: torch.Tensor,
        tuned: torch.Tensor,
        query_original: torch.Tensor | None,
        query_tuned: torch.Tensor | None,
        query_part: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Return the gate's logit in float32, (..., D) or (..., 1); the arguments are those of `forward`."""
        logit: torch.Tensor | None = None
        if self.up is not None:
            # [x_1 ; x_2] W_A = x_1 W_A1 + x_2 W_A2, without the concatenated (..., nD) tensor
            features = query_part if query_part is not None else self.query_part(query_original, query_tuned)
            hidden_states = {"original": original, "tuned": tuned}
            for name, block in self._blocks().items():
                if name in hidden_states:
                    # the gate computes in its own dtype (float32), whatever the backbone's
                    part = functional.linear(hidden_states[name].to(block.dtype), block)
                    features = part if features is None else features + part
            logit = self.output_dropout(self.up(self.dropout(features)))
        if self.bias is not None:
            bias = self.bias.expand(*original.shape[:-1], -1)
            logit = bias if logit is None else logit + bias
        assert logit is not None  # a gate without inputs has a bias
        return logit

    def forward(
        self,
        original: torch.Tensor,
        tuned: torch.Tensor,
        query_original: torch.Tensor | None,
        query_tuned: torch.Tensor | None,
        query_part: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Return the weight g of the original hidden states (eq. 4 and 5), in float32.

        Hidden states are (..., D), those of `with_query`; query states are broadcastable to them, or
        None if the gate does not read them. ``query_part`` is the result of `query_part`, used in
        place of the query states. g is in (0, 1): (..., D) for a vector gate, (..., 1) for a scalar one.
        """
        return self.weight(self.logit(original, tuned, query_original, query_tuned, query_part))

    def weight(self, logit: torch.Tensor) -> torch.Tensor:
        """Return the weight g of the original for a logit: c + (1 - c) sigmoid(logit), c the minimum weight."""
        weight: torch.Tensor = self.min_original_weight + (1 - self.min_original_weight) * torch.sigmoid(logit)
        return weight

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
