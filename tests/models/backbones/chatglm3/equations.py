"""ChatGLM3's equations for one sequence in plain torch: no GLM class, no cache, no mask, no batch.

Rotary positions are products of complex numbers, a norm is a quotient, heads are a loop.
"""

from __future__ import annotations

import torch

from tests.models.backbones.chatglm3.checkpoint import PREFIX, SIZES

Weights = dict[str, torch.Tensor]


def norm(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return weight * x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt()


def rotated(x: torch.Tensor) -> torch.Tensor:
    """(T, S): dimensions (2i, 2i + 1) of the first half of S turn by t * 10000^(-2i / (S/2))."""
    length, size = x.shape
    half = size // 2
    frequency = 10000.0 ** (-torch.arange(0, half, 2, dtype=torch.float64) / half)
    angle = torch.arange(length, dtype=torch.float64)[:, None] * frequency
    turned = torch.view_as_complex(x[:, :half].double().reshape(length, -1, 2).contiguous())
    turned = torch.view_as_real(turned * torch.exp(1j * angle)).reshape(length, half)
    return torch.cat([turned.to(x.dtype), x[:, half:]], dim=-1)


def attention(x: torch.Tensor, weights: Weights) -> torch.Tensor:
    size, heads = SIZES["kv_channels"], SIZES["num_attention_heads"]
    groups = SIZES["multi_query_group_num"]
    fused = x @ weights["query_key_value.weight"].T + weights["query_key_value.bias"]
    columns = fused.split(size, dim=-1)
    queries, keys = columns[:heads], columns[heads : heads + groups]
    values = columns[heads + groups :]
    future = torch.ones(len(x), len(x)).triu(1).bool()
    mixed = []
    for head, query in enumerate(queries):
        group = head // (heads // groups)
        scores = rotated(query) @ rotated(keys[group]).T / size**0.5
        mixed.append(scores.masked_fill(future, -torch.inf).softmax(-1) @ values[group])
    return torch.cat(mixed, dim=-1) @ weights["dense.weight"].T


def mlp(x: torch.Tensor, weights: Weights) -> torch.Tensor:
    first, second = (x @ weights["dense_h_to_4h.weight"].T).split(SIZES["ffn_hidden_size"], -1)
    return first * torch.sigmoid(first) * second @ weights["dense_4h_to_h.weight"].T


def memory(ids: list[int], weights: Weights) -> torch.Tensor:
    """(T, D): the hidden states after the final norm, from weights under their published names."""

    def below(prefix: str) -> Weights:
        start = PREFIX + prefix
        return {name[len(start) :]: w for name, w in weights.items() if name.startswith(start)}

    x = below("embedding.")["word_embeddings.weight"][ids]
    for layer in range(SIZES["num_layers"]):
        own = f"encoder.layers.{layer}."
        normed = norm(x, below(own)["input_layernorm.weight"])
        x = x + attention(normed, below(own + "self_attention."))
        normed = norm(x, below(own)["post_attention_layernorm.weight"])
        x = x + mlp(normed, below(own + "mlp."))
    return norm(x, below("encoder.")["final_layernorm.weight"])


def logits(ids: list[int], weights: Weights) -> torch.Tensor:
    """(T, V)."""
    return memory(ids, weights) @ weights[PREFIX + "output_layer.weight"].T


def greedy(prompt: list[int], weights: Weights, *, steps: int) -> list[int]:
    ids = list(prompt)
    for _ in range(steps):
        ids.append(int(logits(ids, weights)[-1].argmax()))
        if ids[-1] == 2:
            break
    return ids[len(prompt) :]
