"""Padding, masks and labels; a reproducible order with every example once."""

from __future__ import annotations

import random

import pytest
import torch

from imsm.data.batching import (
    MicroBatching,
    collate_packed,
    collate_prompts,
    collate_training,
    evaluation_order,
    num_tokens,
    training_order,
)
from imsm.data.tokenization import TokenizedExample

EXAMPLES = [
    TokenizedExample(id="a", prompt_ids=(1, 5, 6), answer_ids=(7, 2)),
    TokenizedExample(id="b", prompt_ids=(1, 8), answer_ids=(9, 9, 9, 2)),
    TokenizedExample(id="c", prompt_ids=(1,), answer_ids=(2,)),
]


def test_training_batches_are_padded_on_the_right_and_ignore_the_prompt() -> None:
    batch = collate_training(EXAMPLES, pad_id=2)  # padding may be EOS: only the labels differ
    assert batch["input_ids"].tolist() == [[1, 5, 6, 7, 2, 2], [1, 8, 9, 9, 9, 2], [1, 2, 2, 2, 2, 2]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 1, 1, 0], [1, 1, 1, 1, 1, 1], [1, 1, 0, 0, 0, 0]]
    assert batch["labels"].tolist() == [
        [-100, -100, -100, 7, 2, -100],
        [-100, -100, 9, 9, 9, 2],
        [-100, 2, -100, -100, -100, -100],
    ]
    assert {tensor.dtype for tensor in batch.values()} == {torch.int64}


def test_prompts_are_padded_on_the_left() -> None:
    ids, mask = collate_prompts([item.prompt_ids for item in EXAMPLES], pad_id=0)
    assert ids.tolist() == [[1, 5, 6], [0, 1, 8], [0, 0, 1]]
    assert mask.tolist() == [[1, 1, 1], [0, 1, 1], [0, 0, 1]]
    assert {ids.dtype, mask.dtype} == {torch.int64}


def test_training_order_has_every_example_once_and_a_smaller_last_batch() -> None:
    batches = training_order(10, batch_size=4, seed=1, epoch=0)
    assert [len(batch) for batch in batches] == [4, 4, 2]
    assert sorted(index for batch in batches for index in batch) == list(range(10))


def test_training_order_depends_only_on_seed_and_epoch() -> None:
    state = random.getstate()
    first = training_order(50, batch_size=8, seed=1, epoch=0)
    assert random.getstate() == state
    random.seed(99)
    assert training_order(50, batch_size=8, seed=1, epoch=0) == first
    others = [training_order(50, batch_size=8, seed=s, epoch=e) for s, e in [(1, 1), (2, 0), (2, 1)]]
    assert all(other != first for other in others)
    assert others[0] != others[1] != others[2]
    # a resumed run needs the same order under any version of Python
    assert training_order(6, batch_size=6, seed=0, epoch=0) == [[1, 5, 2, 3, 0, 4]]


@pytest.mark.parametrize("n", [1, 7, 50, 999])
def test_grouping_by_length_has_every_example_once_and_the_longest_first(n: int) -> None:
    lengths = [random.Random(i).randint(5, 200) for i in range(n)]
    options = {"batch_size": 8, "seed": 3, "lengths": lengths}
    epochs = [training_order(n, epoch=epoch, **options) for epoch in (0, 1)]
    for batches in epochs:
        assert sorted(index for batch in batches for index in batch) == list(range(n))
        assert len(batches) == -(-n // 8)
        assert max(lengths) in [lengths[index] for index in batches[0]]
    assert n <= 8 or epochs[0] != epochs[1]
    assert training_order(n, epoch=0, **options) == epochs[0]


def test_grouping_by_length_reduces_padding_and_mixes_lengths() -> None:
    lengths = [random.Random(i).randint(5, 200) for i in range(2000)]

    def padded(batches: list[list[int]]) -> int:
        return sum(len(batch) * max(lengths[index] for index in batch) for batch in batches)

    plain = training_order(2000, batch_size=16, seed=0, epoch=0)
    grouped = training_order(2000, batch_size=16, seed=0, epoch=0, lengths=lengths)
    assert padded(plain) > 1.6 * sum(lengths)
    assert padded(grouped) < 1.1 * sum(lengths)
    longest = [max(lengths[index] for index in batch) for batch in grouped]
    assert longest[1:] != sorted(longest[1:]) and longest[1:] != sorted(longest[1:], reverse=True)


def test_evaluation_order_is_longest_first_and_stable() -> None:
    assert evaluation_order([3, 9, 3, 5, 9], batch_size=2) == [[1, 4], [3, 0], [2]]


def of_length(length: int) -> TokenizedExample:
    return TokenizedExample(id=str(length), prompt_ids=(5,) * (length - 1), answer_ids=(2,))


def shares(batching: MicroBatching, batch: list[TokenizedExample], world_size: int) -> list[list[list[int]]]:
    parts = [batching.split(batch, rank=rank, world_size=world_size) for rank in range(world_size)]
    lengths = [[[num_tokens(each) for each in micro] for micro in part] for part in parts]
    # every example once, and the same number of forward passes in every process
    assert sorted(n for part in lengths for micro in part for n in micro) == sorted(map(num_tokens, batch))
    assert len({len(part) for part in parts}) == 1
    return lengths


@pytest.mark.parametrize("world_size", [1, 2, 3, 8])
@pytest.mark.parametrize("size", [1, 5, 16])
@pytest.mark.parametrize("sort", [True, False])
def test_micro_batches_split_a_batch_evenly(size: int, world_size: int, sort: bool) -> None:
    batch = [of_length(length) for length in range(2, 2 + size)]
    parts = shares(MicroBatching(size=2, sort=sort), batch, world_size)
    assert all(len(micro) <= 2 for part in parts for micro in part)
    assert len(parts[0]) == -(-size // world_size) // 2 + (-(-size // world_size)) % 2


def test_micro_batches_hold_examples_of_similar_length_unless_there_is_one_or_the_order_counts() -> None:
    batch = [of_length(length) for length in (3, 9, 2, 8)]
    assert shares(MicroBatching(size=2), batch, 1) == [[[9, 8], [3, 2]]]
    assert shares(MicroBatching(size=4), batch, 1) == [[[3, 9, 2, 8]]]
    assert shares(MicroBatching(size=2, sort=False), batch, 1) == [[[3, 9], [2, 8]]]


@pytest.mark.parametrize("world_size", [1, 2, 5])
@pytest.mark.parametrize("packed", [True, False])
def test_a_token_budget_counts_padding_only_if_there_is_any(world_size: int, packed: bool) -> None:
    lengths = [random.Random(i).randint(2, 60) for i in range(40)]
    parts = shares(MicroBatching(size=1, tokens=100, packed=packed), list(map(of_length, lengths)), world_size)
    costs = [sum(micro) if packed else len(micro) * max(micro) for part in parts for micro in part if micro]
    assert max(costs) <= 100
    assert sum(costs) / sum(lengths) == 1 if packed else sum(costs) / sum(lengths) < 1.3
    # few passes: nearly full
    assert len(costs) <= sum(costs) / 65 + world_size


def test_an_example_longer_than_the_budget_is_alone() -> None:
    for packed in (True, False):
        batching = MicroBatching(size=8, tokens=10, packed=packed)
        assert shares(batching, [of_length(n) for n in (5, 30, 4)], 1) == [[[30], [5, 4]]]


def test_packed_rows_have_positions_that_restart_and_labels_of_answers_alone() -> None:
    batch = collate_packed(EXAMPLES)
    assert batch["input_ids"].tolist() == [[1, 5, 6, 7, 2, 1, 8, 9, 9, 9, 2, 1, 2]]
    assert batch["position_ids"].tolist() == [[0, 1, 2, 3, 4, 0, 1, 2, 3, 4, 5, 0, 1]]
    assert batch["labels"].tolist() == [[-100, -100, -100, 7, 2, -100, -100, 9, 9, 9, 2, -100, 2]]
