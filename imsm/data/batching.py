"""Batches: order of the examples, and padded token ids.

Shapes: B examples, T positions of the longest one.
"""

import math
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch

from imsm.data.tokenization import TokenizedExample

T = TypeVar("T")
IGNORE_INDEX = -100
"""Label that torch's cross-entropy ignores."""
# most batches sorted by length together (at most a quarter of the data), so that batches stay random
_BATCHES_PER_SORT = 32


def collate_training(examples: Sequence[TokenizedExample], *, pad_id: int) -> dict[str, torch.Tensor]:
    """Pad prompt and answer on the right.

    Returns:
        input_ids, attention_mask (0 on padding) and labels (-100 on prompt and padding), each
        int64 of shape (B, T).
    """
    rows = [example.prompt_ids + example.answer_ids for example in examples]
    # not shifted: the model shifts them, as in transformers
    labels = [(IGNORE_INDEX,) * len(example.prompt_ids) + example.answer_ids for example in examples]
    width = max(map(len, rows))
    return {
        "input_ids": torch.tensor([[*row, *[pad_id] * (width - len(row))] for row in rows]),
        "attention_mask": torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows]),
        "labels": torch.tensor([[*row, *[IGNORE_INDEX] * (width - len(row))] for row in labels]),
    }


def collate_packed(examples: Sequence[TokenizedExample]) -> dict[str, torch.Tensor]:
    """Concatenate all examples in one row, without padding.

    Returns:
        input_ids, position_ids (0 where an example begins) and labels (-100 on prompts), each int64
        of shape (1, T).
    """
    tokens = [token for example in examples for token in example.prompt_ids + example.answer_ids]
    positions = [n for example in examples for n in range(len(example.prompt_ids) + len(example.answer_ids))]
    labels = [
        label for example in examples for label in ((IGNORE_INDEX,) * len(example.prompt_ids) + example.answer_ids)
    ]
    rows = {"input_ids": tokens, "position_ids": positions, "labels": labels}
    return {name: torch.tensor([row]) for name, row in rows.items()}


def collate_prompts(
    prompts: Sequence[Sequence[int]], *, pad_id: int, device: torch.device | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Pad prompts on the left, so that all of them end where generation starts.

    Returns:
        input_ids and attention_mask, each int64 of shape (B, T).
    """
    width = max(map(len, prompts))
    padding = [width - len(row) for row in prompts]
    ids = [[*[pad_id] * count, *row] for count, row in zip(padding, prompts, strict=True)]
    mask = [[0] * count + [1] * (width - count) for count in padding]
    return torch.tensor(ids, device=device), torch.tensor(mask, device=device)


def training_order(
    num_examples: int, *, batch_size: int, seed: int, epoch: int, lengths: Sequence[int] | None = None
) -> list[list[int]]:
    """Return an epoch's global batches of shuffled indices; the last batch may be smaller.

    The order depends only on the arguments, not on the global random state, so it is the same
    after a resume and with another number of processes.

    With ``lengths`` (tokens per example) batches hold examples of similar length, in random order
    except that the batch with the longest example is first.
    """
    order = list(range(num_examples))
    # a string seed is hashed by `random` itself, the same in every process and Python version
    shuffle = random.Random(f"imsm.training_order/{seed}/{epoch}").shuffle
    shuffle(order)
    if lengths is None:
        return _chunks(order, batch_size)
    sort_size = batch_size * max(1, min(_BATCHES_PER_SORT, num_examples // (4 * batch_size)))
    batches = [
        batch
        for part in _chunks(order, sort_size)
        for batch in _chunks(sorted(part, key=lambda index: -lengths[index]), batch_size)
    ]
    shuffle(batches)
    # the smaller batch is last, as without lengths; sort is stable and keeps the random order
    batches.sort(key=len, reverse=True)
    # the longest example is first, so that a lack of memory shows at once
    longest = max(batches, key=lambda batch: max(lengths[index] for index in batch), default=[])
    batches.sort(key=lambda batch: batch is not longest)
    return batches


def step_groups(
    epochs: Iterable[Sequence[list[int]]], *, groups_per_step: int, carry_over: bool
) -> list[list[list[int]]]:
    """Return the groups of every step: ``groups_per_step`` consecutive ones of an epoch.

    The last groups of an epoch that do not fill a step are a smaller step, or with ``carry_over``
    are added to the next epoch's first step; those of the last epoch are then not used.
    """
    steps, carried = [], []
    for epoch in epochs:
        for start in range(0, len(epoch), groups_per_step):
            groups = list(epoch[start : start + groups_per_step])
            if carry_over and len(groups) < groups_per_step:
                carried += groups
            else:
                steps.append([*carried, *groups])
                carried = []
    return steps


@dataclass(frozen=True, kw_only=True)
class MicroBatching:
    """How a process cuts its share of a global batch into micro-batches.

    Args:
        size: most examples of a micro-batch; not used with ``tokens``.
        tokens: most tokens of a micro-batch, padding included; a longer example is alone.
        packed: whether the examples of a micro-batch are concatenated in one row, see `collate_packed`.
        sort: whether micro-batches may hold examples of similar length, which changes the loss of the global batch
            by rounding alone.
    """

    size: int
    tokens: int | None = None
    packed: bool = False
    sort: bool = True

    def split(self, batch: Sequence[TokenizedExample], *, rank: int, world_size: int) -> list[list[TokenizedExample]]:
        """Return the micro-batches of process ``rank``; every process gets the same number, the last may be empty."""
        # without a choice the order of the examples stays
        fits = self.tokens is None and math.ceil(len(batch) / world_size) <= self.size
        ordered = sorted(batch, key=lambda each: -num_tokens(each)) if self.sort and not fits else batch
        # strided, so that sorted batches give every process the same mix of lengths
        shares = [self._cut(ordered[number::world_size]) for number in range(world_size)]
        missing = max(map(len, shares)) - len(shares[rank])
        return [*shares[rank], *([] for _ in range(missing))]

    def _cut(self, share: Sequence[TokenizedExample]) -> list[list[TokenizedExample]]:
        if self.tokens is None:
            return _chunks(list(share), self.size)
        parts: list[list[TokenizedExample]] = []
        for example in share:
            # packed: the first part with room; else the last one, whose examples are the most similar
            candidates = parts if self.packed else parts[-1:]
            part = next((each for each in candidates if self._cost([*each, example]) <= self.tokens), None)
            if part is None:
                parts.append([example])
            else:
                part.append(example)
        return parts

    def _cost(self, examples: Sequence[TokenizedExample]) -> int:
        lengths = list(map(num_tokens, examples))
        return sum(lengths) if self.packed else len(lengths) * max(lengths)


def num_tokens(example: TokenizedExample) -> int:
    """Return the tokens of prompt and answer."""
    return len(example.prompt_ids) + len(example.answer_ids)


def evaluation_order(lengths: Sequence[int], *, batch_size: int) -> list[list[int]]:
    """Return batches of similar length, longest first, so that a lack of memory shows at once."""
    order = sorted(range(len(lengths)), key=lambda index: (-lengths[index], index))
    return _chunks(order, batch_size)


def _chunks(order: list[T], size: int) -> list[list[T]]:
    return [order[start : start + size] for start in range(0, len(order), size)]
