"""Decoder inputs, and the positions that belong to the query.

Shapes: B batch, T positions of this pass, D hidden size.
"""

import torch
from torch.nn import functional
from transformers import Cache

from imsm.data.batching import IGNORE_INDEX
from imsm.models.siamese.kv_cache import DualStreamCache


def decoder_inputs(
    input_ids: torch.Tensor | None,
    *,
    attention_mask: torch.Tensor | None,
    inputs_embeds: torch.Tensor | None = None,
    position_ids: torch.Tensor | None = None,
    cache: Cache | None = None,
) -> dict[str, torch.Tensor]:
    """Return the decoder's keyword arguments, with positions counted from the mask.

    Raises:
        ValueError: not exactly one of ``input_ids`` and ``inputs_embeds``, or a mask whose shape is not (B, past + T).
    """
    given = {"input_ids": input_ids, "inputs_embeds": inputs_embeds}
    inputs = {name: value for name, value in given.items() if value is not None}
    if len(inputs) != 1:
        raise ValueError("forward needs either input_ids or inputs_embeds")
    (tokens,) = inputs.values()
    batch, length = tokens.shape[:2]
    past = cache.get_seq_length() if cache is not None else 0
    mask = attention_mask
    if not isinstance(mask, torch.Tensor) or mask.ndim != 2:
        # transformers prepares other masks for a static cache
        mask = None
    if mask is not None and mask.shape != (batch, past + length):
        raise ValueError(
            f"attention_mask: has shape {tuple(mask.shape)}; {past} cached and {length} new positions "
            f"need {(batch, past + length)}"
        )
    if position_ids is None and mask is not None:
        # token counts, not column numbers: padding may be on the left, on the right or inside a prompt
        positions = (mask.long().cumsum(dim=1) - 1).clamp(min=0)
        position_ids = positions[:, past:]
    elif position_ids is None:
        position_ids = torch.arange(past, past + length, device=tokens.device)[None].expand(batch, -1)
    inputs["position_ids"] = position_ids
    if attention_mask is not None:
        inputs["attention_mask"] = attention_mask
    return inputs


def labelled_inputs(
    input_ids: torch.Tensor | None,
    *,
    inputs_embeds: torch.Tensor | None,
    attention_mask: torch.Tensor | None,
    position_ids: torch.Tensor | None,
    keep_mask: bool,
) -> dict[str, torch.Tensor]:
    """Return the decoder's keyword arguments for complete sequences with labels, on the device of the tokens.

    A causal decoder never reads padding on the right, so without ``keep_mask`` its mask is left out, and attention
    needs none. A mask on a GPU is kept: reading it would make the CPU wait.

    Raises:
        ValueError: as `decoder_inputs`.
    """
    inputs = decoder_inputs(
        input_ids, inputs_embeds=inputs_embeds, attention_mask=attention_mask, position_ids=position_ids
    )
    if position_ids is None and not keep_mask and _padded_on_the_right(attention_mask):
        del inputs["attention_mask"], inputs["position_ids"]
    device = next(iter(inputs.values())).device
    return {name: to_device(value, device) for name, value in inputs.items()}


def _padded_on_the_right(mask: torch.Tensor | None) -> bool:
    if not isinstance(mask, torch.Tensor) or mask.ndim != 2 or mask.device.type != "cpu":
        return False
    return bool((mask[:, 1:] <= mask[:, :-1]).all()) and bool(mask[:, 0].all())


def to_device(values: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Copy ``values`` to ``device``; to a GPU without waiting for its queued work."""
    if device.type == "cuda" and values.device.type == "cpu":
        return values.pin_memory().to(device, non_blocking=True)
    return values.to(device)


def query_mask_of_chunk(
    inputs: dict[str, torch.Tensor], *, query_mask: torch.Tensor | None, cache: Cache | None
) -> torch.Tensor:
    """Return the query positions (B, T) in the chunk of ``inputs``.

    Raises:
        ValueError: the query positions cannot be inferred.
    """
    tokens = inputs["input_ids"] if "input_ids" in inputs else inputs["inputs_embeds"]
    length = tokens.shape[1]
    if isinstance(cache, DualStreamCache):
        mask = cache.next_query_mask(query_mask, tokens=tokens)
    elif query_mask is None:
        raise ValueError(
            "query_mask=None: the gate reads the query, whose positions cannot be inferred; pass query_mask "
            "(1 on query tokens), labels, or a cache from new_cache()"
        )
    elif query_mask.shape[1] > length:
        raise ValueError(f"query_mask: has {query_mask.shape[1]} positions for {length} tokens")
    else:
        mask = functional.pad(query_mask.to(tokens.device).float(), (0, length - query_mask.shape[1]))
    # padding counts as query in a default mask of ones, but must not be pooled
    if "attention_mask" in inputs:
        mask = mask * inputs["attention_mask"][:, -length:]
    return mask


def query_mask_from_labels(
    labels: torch.Tensor, *, attention_mask: torch.Tensor | None, query_mask: torch.Tensor | None
) -> torch.Tensor:
    """Return the query positions (B, T) of labelled sequences.

    By default the query is everything before the first label.

    Raises:
        ValueError: a row has no query, or ``query_mask`` overlaps its answer.
    """
    # from the first label on: positions inside an answer without a label are not query again
    answer = (labels != IGNORE_INDEX).long().cumsum(dim=1) > 0
    query = ~answer
    if query_mask is not None:
        query = functional.pad(query_mask.bool(), (0, labels.shape[1] - query_mask.shape[1]))
        if bool((query & answer).any()):
            raise ValueError("query_mask: a query must end before the first label of its row")
    if attention_mask is not None:
        query = query & attention_mask.bool()
    if not bool(query.any(dim=1).all()):
        raise ValueError("labels: a row has no query, since each of its tokens is a label")
    return query


def select_positions(values: torch.Tensor, logits_to_keep: int | torch.Tensor) -> torch.Tensor:
    """Select positions of ``values`` (B, T, ...) as transformers' ``logits_to_keep`` does."""
    # contiguous: matmuls on strided rows sum in another order, which depends on requires_grad
    if isinstance(logits_to_keep, torch.Tensor):
        return values[:, logits_to_keep].contiguous()
    return values[:, -logits_to_keep:].contiguous() if logits_to_keep else values
