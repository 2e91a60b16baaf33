"""Hidden states of the original model for all training examples, computed once.

They do not depend on the epoch, the PEFT method, the rank or the seed. For each example the gate needs h_o at the
positions that predict its answer, and q_o; a training step that receives them runs the tuned stream only. With a
frozen adapter h_t and q_t do not change either: a step that receives all four runs no stream.

The cache is computed in chunks that depend on the examples alone, so the result does not depend on
which run computes it. A chunk's padding differs from that of a training batch: in float32 losses
agree with those of a training without the cache to 1e-5.

Shapes: E examples, A answer tokens of all examples, N answer tokens of a batch of B, D hidden size.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch

from imsm.data.batching import collate_training
from imsm.data.tokenization import TokenizedExample
from imsm.models.siamese.inputs import labelled_inputs, to_device
from imsm.models.siamese.labels import index_labels, index_queries
from imsm.models.siamese.model import SiameseForCausalLM
from imsm.models.siamese.packed_sequences import known_sequences
from imsm.models.siamese.streams import Stream
from imsm.utils.hashing import hash_chunks

CHUNK_TOKENS = 4096
"""Tokens per pass, padding included; a longer example is processed alone."""
ChunkResult = tuple[torch.Tensor, torch.Tensor]
"""Hidden states (A, D) and query states (E, D) of a chunk, on the CPU."""
Progress = Callable[[list[list[TokenizedExample]]], Iterable[list[TokenizedExample]]]
"""Iterates over the chunks, for a progress bar."""
_Ids = tuple[tuple[int, ...], tuple[int, ...]]


@dataclass(frozen=True)
class HiddenStateCache:
    """Hidden states and query states of a set of examples.

    Args:
        index: maps an example's tokens to its number, its first row and its end row.
        hidden_states: of one stream at the positions that predict the answers, (A, D), backbone dtype.
        queries: its query states, (E, D) in float32, pooled as the model pools.
        tuned: the cache of a frozen adapter's stream; None to run that stream in every step.
    """

    index: dict[_Ids, tuple[int, int, int]]
    hidden_states: torch.Tensor
    queries: torch.Tensor
    tuned: HiddenStateCache | None = None

    def model_inputs(self, examples: Sequence[TokenizedExample]) -> dict[str, torch.Tensor]:
        """Return the keyword arguments of `SiameseForCausalLM.forward` for a batch.

        They are ``original_hidden_states`` (N, D) in the order of the labels, and ``original_query`` (B, D); with
        `tuned` also ``tuned_hidden_states`` and ``tuned_query``.

        Raises:
            KeyError: an example is not in the cache.
        """
        hidden_states, queries = self._rows(examples)
        inputs = {"original_hidden_states": hidden_states, "original_query": queries}
        if self.tuned is not None:
            hidden_states, queries = self.tuned._rows(examples)
            inputs |= {"tuned_hidden_states": hidden_states, "tuned_query": queries}
        return inputs

    def _rows(self, examples: Sequence[TokenizedExample]) -> tuple[torch.Tensor, torch.Tensor]:
        entries = [self.index[_ids(example)] for example in examples]
        rows = [self.hidden_states[start:end] for _, start, end in entries]
        numbers = torch.tensor([number for number, _, _ in entries])
        return torch.cat(rows), self.queries[numbers]


def canonical_order(examples: Iterable[TokenizedExample]) -> list[TokenizedExample]:
    """Return the distinct examples, longest first, independent of the given order."""
    distinct = {_ids(example): example for example in examples}
    # longest first, so that memory runs out in the first chunk or never; ties by tokens
    ids = sorted(distinct, key=lambda each: (-len(each[0]) - len(each[1]), each))
    return [distinct[each] for each in ids]


def row_offsets(examples: Sequence[TokenizedExample]) -> dict[_Ids, tuple[int, int, int]]:
    """Return `HiddenStateCache.index` of examples in `canonical_order`."""
    ends = list(accumulate(len(example.answer_ids) for example in examples))
    starts = [0, *ends[:-1]]
    return {_ids(example): (n, starts[n], ends[n]) for n, example in enumerate(examples)}


def hash_examples(examples: Sequence[TokenizedExample]) -> str:
    """Return the SHA-256 of the tokens of examples in `canonical_order`."""
    return hash_chunks(array("q", [len(ids), *ids]).tobytes() for example in examples for ids in _ids(example))


def cache_bytes(*, num_examples: int, num_answer_tokens: float, hidden_size: int, dtype: torch.dtype) -> int:
    """Return the size in bytes: hidden states in ``dtype``, query states in float32."""
    return round(num_answer_tokens * hidden_size * dtype.itemsize) + num_examples * hidden_size * 4


def compute_hidden_states(
    model: SiameseForCausalLM,
    examples: Sequence[TokenizedExample],
    *,
    pad_id: int,
    on_chunk: Callable[[ChunkResult], None],
    progress: Progress = iter,
    stream: Stream = "original",
) -> None:
    """Run one stream once over examples in `canonical_order`.

    The gate of ``model`` is not used, nor its adapter by the original stream; its mode is restored. ``on_chunk`` gets
    the results in order.
    """
    device = next(model.backbone.parameters()).device
    training = model.training
    model.eval()
    try:
        # a list has a length, for the progress bar
        for chunk in progress(list(_chunks(examples))):
            on_chunk(_compute_chunk(model, chunk, pad_id=pad_id, device=device, stream=stream))
    finally:
        model.train(training)


def compute_in_memory(
    model: SiameseForCausalLM,
    examples: Iterable[TokenizedExample],
    *,
    pad_id: int,
    progress: Progress = iter,
    stream: Stream = "original",
) -> HiddenStateCache:
    """Compute the cache of examples in any order; see `compute_hidden_states`."""
    ordered = canonical_order(examples)
    chunks: list[ChunkResult] = []
    compute_hidden_states(model, ordered, pad_id=pad_id, on_chunk=chunks.append, progress=progress, stream=stream)
    hidden_states, queries = (torch.cat(parts) for parts in zip(*chunks, strict=True))
    return HiddenStateCache(row_offsets(ordered), hidden_states, queries)


@torch.no_grad()
def _compute_chunk(
    model: SiameseForCausalLM, chunk: Sequence[TokenizedExample], *, pad_id: int, device: torch.device, stream: Stream
) -> ChunkResult:
    batch = collate_training(chunk, pad_id=pad_id)
    labels, mask = batch["labels"], batch["attention_mask"]
    inputs = labelled_inputs(
        to_device(batch["input_ids"], device),
        inputs_embeds=None,
        attention_mask=mask,
        position_ids=None,
        keep_mask=model.streams.virtual_tokens is not None,
    )
    with known_sequences(None):
        hidden_states = model.streams.hidden_states(inputs, stream=stream, cache=None)
    index = index_labels(labels, sequences=None, device=device)
    query = index_queries(labels, attention_mask=mask, query_mask=None, sequences=None, device=device)
    queries = query.pool(hidden_states, pooling=model.config.pooling)
    # chunk by chunk: those of all examples may not fit on the device
    return hidden_states[index.rows, index.columns].cpu(), queries.cpu()


def _chunks(examples: Sequence[TokenizedExample]) -> Iterator[list[TokenizedExample]]:
    """Yield chunks of at most `CHUNK_TOKENS` tokens; ``examples`` are sorted longest first."""
    start = 0
    while start < len(examples):
        longest = len(examples[start].prompt_ids) + len(examples[start].answer_ids)
        end = start + max(1, CHUNK_TOKENS // longest)
        yield list(examples[start:end])
        start = end


def _ids(example: TokenizedExample) -> _Ids:
    return example.prompt_ids, example.answer_ids
