"""The query state of each request, kept in vLLM's paged cache.

The gate reads q_o and q_t, the means of both streams' hidden states over the prompt, through its first matrix W_A.
That product is linear, so its mean over the prompt is the mean of one value per token, R numbers. Two attention layers
compute it at every position t of a prompt of P tokens:

    mean:    keys 0, values v_t        -> m_t = (v_0 + ... + v_t) / (t + 1), by a uniform softmax
    lookup:  keys phi(t), values m_t   -> m at position min(t, P - 1), by the query phi(min(t, P - 1))

phi(t) has cos and sin of pi t / 2^i, i = 0, 1, ... For t != s with lowest different bit j, the term i = j of
phi(t) . phi(s) is cos(pi * odd) = -1, so the score of any other position is at least 2 lower before scaling.

What is cached depends on the tokens up to t alone, not on which of them are the prompt: an answer that is part of the
next prompt can be taken from the prefix cache, and a preempted request is recomputed in any chunks.
"""

from __future__ import annotations

import math

import torch
from torch import nn
from vllm.config import CacheConfig
from vllm.model_executor.layers.attention import Attention

_SHARPNESS = 30.0
"""Half of the difference between the score of a position and those of all others; exp(-60) is 0 in float32."""


class QueryMemory(nn.Module):
    """Means over the prompt of up to ``num_kv_heads * head_size`` values per token.

    Args:
        like: attention layer of the model, whose heads these layers copy: one cache holds all layers.
        first_layer: layer number of the first of the two layers; vLLM reads numbers from names.
        max_positions: length of the longest sequence.
        pooling: "mean", or "last" for the value of the prompt's last token.

    Raises:
        ValueError: positions do not fit into the heads, or all layers have a sliding window.
    """

    periods: torch.Tensor

    def __init__(
        self, like: Attention, *, cache_config: CacheConfig, first_layer: int, max_positions: int, pooling: str
    ) -> None:
        super().__init__()
        if cache_config.sliding_window is not None:
            raise ValueError("sliding_window: with a window in every layer, no layer sees the whole prompt")
        bits = max(1, math.ceil(math.log2(max_positions)))
        if 2 * bits > like.head_size:
            raise ValueError(
                f"--max-model-len={max_positions}: more than {2 ** (like.head_size // 2)} positions need larger heads"
            )
        self.kv_heads, self.head_size = like.num_kv_heads, like.head_size
        self.group = like.num_heads // like.num_kv_heads

        def attention(number: int) -> Attention:
            return Attention(
                like.num_heads,
                like.head_size,
                1.0,
                num_kv_heads=like.num_kv_heads,
                cache_config=cache_config,
                prefix=f"model.layers.{number}.query_memory",
            )

        self.mean = attention(first_layer) if pooling == "mean" else None
        self.lookup = attention(first_layer + 1)
        self.register_buffer("periods", 2 ** torch.arange(1, bits + 1), persistent=False)

    @property
    def width(self) -> int:
        """The largest number of values per token."""
        return self.kv_heads * self.head_size

    def forward(self, values: torch.Tensor, positions: torch.Tensor, ends: torch.Tensor) -> torch.Tensor:
        """Return the mean of ``values`` (N, R) from position 0 up to position ``ends`` (N,), (N, R).

        ``positions`` (N,) are those of the tokens, ``ends`` at most these.
        """
        count, rank = values.shape
        stored = torch.nn.functional.pad(values, (0, self.width - rank))
        if self.mean is not None:
            zero = stored.new_zeros(1).expand(count, self.width).contiguous()
            queries = stored.new_zeros(count, self.width * self.group)
            stored = self._values(self.mean(queries, zero, stored))
        keys, queries = self._code(positions, stored), self._code(ends, stored) * _SHARPNESS
        keys = keys.repeat(1, self.kv_heads)
        queries = queries.repeat(1, self.kv_heads * self.group)
        return self._values(self.lookup(queries, keys, stored))[:, :rank]

    def _values(self, output: torch.Tensor) -> torch.Tensor:
        """Return one of the equal outputs of each group of heads, (N, kv_heads * head_size)."""
        return output.view(len(output), self.kv_heads, self.group, self.head_size)[:, :, 0].flatten(1)

    def _code(self, positions: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
        """Return phi, (N, head_size)."""
        # the remainder first: the angle of a large position has too few digits in float32
        angles = (positions[:, None] % self.periods).float() * (2 * math.pi / self.periods)
        code = torch.cat([angles.cos(), angles.sin()], dim=1).to(like.dtype)
        return torch.nn.functional.pad(code, (0, self.head_size - code.shape[1]))
