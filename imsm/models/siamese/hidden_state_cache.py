"""The original memories of training examples, computed once and kept.

They never change: not over epochs, PEFT methods, ranks or seeds. Of each example the gate needs
h_o at the positions that predict its answer, and q_o; a training step that is given them runs the
tuned stream alone.

One pass fills a bank, over chunks that depend on the examples alone, so whoever fills it first
changes no result. A chunk's padding differs from a training batch's: in float32 a loss is within
1e-5 of that of a training without a bank.

Legend: E examples, A answer tokens of all of them, N those of a batch of B, D width.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING

import torch

from imsm.data.batching import collate_training
from imsm.models.siamese.inputs import IGNORED, body_inputs, query_mask_from_labels
from imsm.models.siamese.query_pooling import pool
from imsm.utils.hashing import hash_chunks

if TYPE_CHECKING:
    from imsm.data.tokenization import TokenizedExample
    from imsm.models.siamese.model import SiameseForCausalLM

CHUNK_TOKENS = 4096
"""Of one pass, padding included; one longer example has a pass of its own."""
Piece = tuple[torch.Tensor, torch.Tensor]
"""Memories (A, D) and query memories (E, D) of a chunk, on the CPU."""
_Ids = tuple[tuple[int, ...], tuple[int, ...]]


@dataclass(frozen=True)
class HiddenStateCache:
    """What is kept of a set of examples.

    Args:
        places: by an example's tokens its number, its first row and the one after its last.
        memories: h_o of the positions that predict the answers, (A, D) in the backbone's dtype.
        queries: q_o, (E, D) in float32, as the model pools it.
    """

    places: dict[_Ids, tuple[int, int, int]]
    memories: torch.Tensor
    queries: torch.Tensor

    def inputs(self, items: Sequence[TokenizedExample]) -> dict[str, torch.Tensor]:
        """What `SiameseForCausalLM.forward` is given of the examples of a batch.

        Returns:
            original_memory (N, D), the answers one after the other, and original_query (B, D).

        Raises:
            KeyError: an example that the bank was not filled with.
        """
        places = [self.places[_ids(item)] for item in items]
        rows = [self.memories[first:end] for _, first, end in places]
        numbers = torch.tensor([number for number, _, _ in places])
        return {"original_memory": torch.cat(rows), "original_query": self.queries[numbers]}


def canonical_order(items: Iterable[TokenizedExample]) -> list[TokenizedExample]:
    """The distinct examples in the order of a bank, longest first, whatever order they come in."""
    distinct = {_ids(item): item for item in items}
    ids = sorted(distinct, key=lambda each: (-len(each[0]) - len(each[1]), each))
    return [distinct[each] for each in ids]


def row_offsets(examples: Sequence[TokenizedExample]) -> dict[_Ids, tuple[int, int, int]]:
    """Where the rows of examples lie that are `in_order`."""
    ends = list(accumulate(len(each.answer_ids) for each in examples))
    starts = [0, *ends[:-1]]
    ids = [_ids(each) for each in examples]
    return {each: (n, starts[n], ends[n]) for n, each in enumerate(ids)}


def hash_examples(examples: Sequence[TokenizedExample]) -> str:
    """SHA-256 over the tokens of examples that are `in_order`."""
    return hash_chunks(array("q", [len(ids), *ids]).tobytes() for each in examples for ids in _ids(each))


def bank_bytes(*, examples: int, answer_tokens: float, width: int, dtype: torch.dtype) -> int:
    """Bytes of a bank: memories in the backbone's dtype, query memories in float32.

    Args:
        examples: how many.
        answer_tokens: of all of them.
        width: D.
        dtype: of the memories.
    """
    return round(answer_tokens * width * dtype.itemsize) + examples * width * 4


def compute_hidden_states(
    model: SiameseForCausalLM,
    examples: Sequence[TokenizedExample],
    *,
    pad_id: int,
    keep: Callable[[Piece], None],
    chunks: Callable[[list[list[TokenizedExample]]], Iterable[list[TokenizedExample]]] = iter,
) -> None:
    """Run the original stream once over examples that are `in_order`.

    Args:
        model: any with the backbone; adapter and gate do not count. Its mode is left as it was.
        examples: see `in_order`.
        pad_id: the padding token.
        keep: is given each chunk's rows, in order.
        chunks: goes through the chunks (a progress bar).
    """
    device = next(model.backbone.parameters()).device
    training = model.training
    model.eval()
    try:
        for chunk in chunks(list(_chunks(examples))):
            keep(_piece(model, chunk, pad_id=pad_id, device=device))
    finally:
        model.train(training)


def compute_in_memory(
    model: SiameseForCausalLM,
    items: Sequence[TokenizedExample],
    *,
    pad_id: int,
    chunks: Callable[[list[list[TokenizedExample]]], Iterable[list[TokenizedExample]]] = iter,
) -> HiddenStateCache:
    """A bank of this process alone; arguments as of `fill`, in any order."""
    examples = canonical_order(items)
    pieces: list[Piece] = []
    compute_hidden_states(model, examples, pad_id=pad_id, keep=pieces.append, chunks=chunks)
    memories, queries = (torch.cat(each) for each in zip(*pieces, strict=True))
    return HiddenStateCache(row_offsets(examples), memories, queries)


@torch.no_grad()
def _piece(
    model: SiameseForCausalLM, chunk: Sequence[TokenizedExample], *, pad_id: int, device: torch.device
) -> Piece:
    batch = {name: each.to(device) for name, each in collate_training(chunk, pad_id=pad_id).items()}
    labels = batch.pop("labels")
    mask = batch["attention_mask"]
    inputs = body_inputs(batch["input_ids"], inputs_embeds=None, attention_mask=mask, position_ids=None, cache=None)
    memory = model.streams.hidden_states(inputs, stream="original", cache=None)
    query = query_mask_from_labels(labels, attention_mask=mask, query_mask=None)
    pooled = pool(memory, query, pooling=model.config.pooling)
    rows, columns = torch.nonzero(labels[:, 1:] != IGNORED, as_tuple=True)
    return memory[rows, columns].cpu(), pooled.cpu()


def _chunks(examples: Sequence[TokenizedExample]) -> Iterator[list[TokenizedExample]]:
    """Examples that are longest first, as many at a time as `CHUNK_TOKENS` allow."""
    start = 0
    while start < len(examples):
        longest = len(examples[start].prompt_ids) + len(examples[start].answer_ids)
        end = start + max(1, CHUNK_TOKENS // longest)
        yield list(examples[start:end])
        start = end


def _ids(item: TokenizedExample) -> _Ids:
    return item.prompt_ids, item.answer_ids
