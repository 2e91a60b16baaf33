"""Batches: which examples go together, and their token ids padded to one length.

Shapes: B examples, T positions of the longest of them.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from typing import TYPE_CHECKING, TypeVar

from imsm.data.tokenization import TokenizedExample

if TYPE_CHECKING:
    import torch

Item = TypeVar("Item")
IGNORED = -100  # the label that torch's cross-entropy passes over


def collate_training(items: Sequence[TokenizedExample], *, pad_id: int) -> dict[str, torch.Tensor]:
    """Prompt and answer, padded on the right.

    Returns:
        input_ids, attention_mask (1 on tokens, 0 on padding) and labels (the answer's and EOS's
        ids; -100 on prompt and padding), each (B, T) of int64.
    """
    import torch

    rows = [item.prompt_ids + item.answer_ids for item in items]
    labels = [(IGNORED,) * len(item.prompt_ids) + item.answer_ids for item in items]
    width = max(map(len, rows))
    return {
        "input_ids": torch.tensor([[*row, *[pad_id] * (width - len(row))] for row in rows]),
        "attention_mask": torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows]),
        "labels": torch.tensor([[*row, *[IGNORED] * (width - len(row))] for row in labels]),
    }


def collate_prompts(
    prompts: Sequence[Sequence[int]], *, pad_id: int, device: torch.device | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Prompts padded on the left, so that all of them end where generation begins.

    Returns:
        Token ids, and 1 on tokens, 0 on padding, each (B, T) of int64, on the device.
    """
    import torch

    width = max(map(len, prompts))
    gaps = [width - len(row) for row in prompts]
    ids = [[*[pad_id] * gap, *row] for gap, row in zip(gaps, prompts, strict=True)]
    mask = [[0] * gap + [1] * (width - gap) for gap in gaps]
    return torch.tensor(ids, device=device), torch.tensor(mask, device=device)


_SORTED_TOGETHER = 32
"""So many batches are sorted by length at a time, or a quarter of the data: batches stay random."""


def training_order(
    n: int, *, batch_size: int, seed: int, epoch: int, lengths: Sequence[int] | None = None
) -> list[list[int]]:
    """The epoch's global batches: all of 0..n-1 once, shuffled; the last batch may be smaller.

    It depends on the arguments alone (no global random state), so a run that is resumed, or that
    runs on other processes, goes on with the same batches.

    Args:
        n: how many examples.
        batch_size: of an optimizer step.
        seed: with ``epoch`` it decides the order.
        epoch: from 0.
        lengths: of the examples in tokens: those of like length go together then, in batches whose
            order is random but for the one with the longest example, which comes first (memory
            runs out at once or never). None: lengths do not matter.
    """
    order = list(range(n))
    shuffle = random.Random(f"imsm.training_order/{seed}/{epoch}").shuffle
    shuffle(order)
    if lengths is None:
        return _chunks(order, batch_size)
    together = batch_size * max(1, min(_SORTED_TOGETHER, n // (4 * batch_size)))
    batches = [
        batch
        for piece in _chunks(order, together)
        for batch in _chunks(sorted(piece, key=lambda index: -lengths[index]), batch_size)
    ]
    shuffle(batches)
    batches.sort(key=len, reverse=True)  # the smaller one last
    longest = max(batches, key=lambda batch: max(lengths[index] for index in batch), default=[])
    batches.sort(key=lambda batch: batch is not longest)
    return batches


def micro_batches(batch: Sequence[Item], *, micro_batch_size: int, rank: int, processes: int) -> list[Sequence[Item]]:
    """A process's part of a global batch, cut into what one forward takes.

    Every process gets equally many micro-batches; the last ones may be empty.
    """
    own = batch[rank::processes]
    count = math.ceil(math.ceil(len(batch) / processes) / micro_batch_size)
    return [own[i * micro_batch_size : (i + 1) * micro_batch_size] for i in range(count)]


def evaluation_order(lengths: Sequence[int], *, batch_size: int) -> list[list[int]]:
    """Batches of similar length, longest first, so that memory runs out at once or never."""
    order = sorted(range(len(lengths)), key=lambda index: (-lengths[index], index))
    return _chunks(order, batch_size)


def _chunks(order: list[int], size: int) -> list[list[int]]:
    return [order[start : start + size] for start in range(0, len(order), size)]
