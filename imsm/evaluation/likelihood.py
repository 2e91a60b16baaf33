"""How likely a stream finds given answers to prompts that it has read.

Legend: B prompts, R answers weighed at once, T tokens of the longest of them, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from imsm.models.siamese.chunked_loss import logit_chunk_size

if TYPE_CHECKING:
    from imsm.models.siamese.decoding_session import DecodingSession

TokenIds = tuple[int, ...]
MAX_COPY_BYTES = 2**31
"""Bytes of a cache that are copied at a time: each answer goes on from a copy of its prompt's."""


@torch.inference_mode()
def log_likelihoods(
    reading: DecodingSession, answers: Sequence[Sequence[TokenIds]], *, pad_id: int
) -> list[list[float]]:
    """The sum of ln p over the tokens of each answer.

    Args:
        reading: of B prompts; it stays where it is.
        answers: to each prompt any number of them, each of a token at least.
        pad_id: fills up the shorter ones.

    Returns:
        A value for each answer, in the same order.
    """
    found: list[list[float]] = [[] for _ in answers]
    first = reading.logits.float().log_softmax(dim=-1)  # (B, V)
    pairs = [(row, ids) for row, own in enumerate(answers) for ids in own]
    at_once = max(1, min(len(reading), MAX_COPY_BYTES // max(1, reading.row_bytes())))
    for start in range(0, len(pairs), at_once):
        rows, texts = zip(*pairs[start : start + at_once], strict=True)
        width = max(map(len, texts))
        ids = torch.tensor([[*text, *[pad_id] * (width - len(text))] for text in texts])
        mask = torch.tensor([[1] * len(text) + [0] * (width - len(text)) for text in texts])
        ids, mask = ids.to(first.device), mask.to(first.device)
        total = first[list(rows)].gather(1, ids[:, :1])[:, 0]
        if width > 1:
            total = total + _after_the_first(reading.fork(rows), ids, mask)
        for row, value in zip(rows, total.tolist(), strict=True):
            found[row].append(value)
    return found


def _after_the_first(reading: DecodingSession, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """The sum of ln p over all tokens but the first: ids and mask (R, T) -> (R,)."""
    total = torch.zeros(len(ids), device=ids.device)
    at_once = logit_chunk_size(reading.model.backbone)
    step = ids.shape[1] if at_once is None else max(1, at_once // len(ids))
    for start in range(0, ids.shape[1] - 1, step):
        stop = min(start + step, ids.shape[1] - 1)
        logits = reading.forward(ids[:, start:stop], mask=mask[:, start:stop])
        following = slice(start + 1, stop + 1)
        each = logits.float().log_softmax(dim=-1).gather(2, ids[:, following, None])[..., 0]
        total += (each * mask[:, following]).sum(dim=1)
    return total
