"""What a pass is fed, and which of its positions are the query's.

Legend: B batch, T positions of this pass, D width of a memory.
"""

from __future__ import annotations

import torch
from torch.nn import functional
from transformers import Cache

from imsm.models.siamese.kv_cache import DualStreamCache

IGNORED = -100
"""The label of a token that is not learned (torch's and transformers' convention)."""


def body_inputs(
    input_ids: torch.Tensor | None,
    *,
    inputs_embeds: torch.Tensor | None,
    attention_mask: torch.Tensor | None,
    position_ids: torch.Tensor | None,
    cache: Cache | None,
) -> dict[str, torch.Tensor]:
    """A body's inputs by name, positions counted from the mask (padding on the left or right).

    Raises:
        ValueError: not exactly one of tokens and embeddings, or a mask that is not (B, past + T).
    """
    given = {"input_ids": input_ids, "inputs_embeds": inputs_embeds}
    inputs = {name: value for name, value in given.items() if value is not None}
    if len(inputs) != 1:
        raise ValueError("forward needs input_ids or inputs_embeds, one of them")
    (fed,) = inputs.values()
    batch, length = fed.shape[:2]
    past = cache.get_seq_length() if cache is not None else 0
    mask = attention_mask
    if not isinstance(mask, torch.Tensor) or mask.ndim != 2:
        mask = None  # the masks that transformers prepares for a static cache
    if mask is not None and mask.shape != (batch, past + length):
        raise ValueError(
            f"attention_mask has the shape {tuple(mask.shape)}; {past} positions in the "
            f"cache and {length} new ones need {(batch, past + length)}"
        )
    if position_ids is None and mask is not None:
        positions = (mask.long().cumsum(dim=1) - 1).clamp(min=0)
        position_ids = positions[:, past:]
    elif position_ids is None:
        steps = torch.arange(past, past + length, device=fed.device)
        position_ids = steps[None].expand(batch, -1)
    inputs["position_ids"] = position_ids
    if attention_mask is not None:
        inputs["attention_mask"] = attention_mask
    return inputs


def query_mask_of_chunk(
    inputs: dict[str, torch.Tensor], *, query_mask: torch.Tensor | None, cache: Cache | None
) -> torch.Tensor:
    """The query's positions (B, T) in the piece that ``inputs`` feeds.

    Raises:
        ValueError: nothing tells the query from the answer.
    """
    fed = inputs["input_ids"] if "input_ids" in inputs else inputs["inputs_embeds"]
    length = fed.shape[1]
    if isinstance(cache, DualStreamCache):
        mask = cache.query_piece(query_mask, fed=fed)
    elif query_mask is None:
        raise ValueError(
            "the gate reads the query, and nothing tells the query from the answer: pass "
            "query_mask (1 on the query's tokens), labels, or a cache from new_cache()"
        )
    elif query_mask.shape[1] > length:
        raise ValueError(f"query_mask: {query_mask.shape[1]} positions for {length} tokens")
    else:
        mask = functional.pad(query_mask.to(fed.device).float(), (0, length - query_mask.shape[1]))
    if "attention_mask" in inputs:
        mask = mask * inputs["attention_mask"][:, -length:]
    return mask


def query_mask_from_labels(
    labels: torch.Tensor, *, attention_mask: torch.Tensor | None, query_mask: torch.Tensor | None
) -> torch.Tensor:
    """The query's positions (B, T) of labelled sequences: by default all before the first label.

    Raises:
        ValueError: a row has no query, or ``query_mask`` reaches into its answer.
    """
    answer = (labels != IGNORED).long().cumsum(dim=1) > 0
    query = ~answer
    if query_mask is not None:
        query = functional.pad(query_mask.bool(), (0, labels.shape[1] - query_mask.shape[1]))
        if bool((query & answer).any()):
            raise ValueError("query_mask: a query must end before the first label of its row")
    if attention_mask is not None:
        query = query & attention_mask.bool()
    if not bool(query.any(dim=1).all()):
        raise ValueError("labels: a row has no query, every one of its tokens is a label")
    return query


def select_positions(values: torch.Tensor, logits_to_keep: int | torch.Tensor) -> torch.Tensor:
    """The positions of ``values`` (B, T, ...) that transformers' ``logits_to_keep`` asks for.

    In memory they lie together: of rows that lie apart torch takes products in another order, and
    in which one depends on whether the weight is trained.
    """
    if isinstance(logits_to_keep, torch.Tensor):
        return values[:, logits_to_keep].contiguous()
    return values[:, -logits_to_keep:].contiguous() if logits_to_keep else values
