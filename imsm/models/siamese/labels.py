"""Where the labels of a batch are, and which positions are the query of each sequence.

The tensors of a batch that only select positions (labels, mask, positions of packed sequences) may stay on the CPU,
where a collator made them: they are read there, and the device gets finished indices. Reading them on a GPU would make
the CPU wait for all its queued work in every forward pass.

Packed rows hold several sequences one after the other; a position 0 begins the next one.

Shapes: B rows, T positions of a row, S sequences (B unless packed), N labels, Q longest query, D hidden size.
"""

from dataclasses import dataclass

import torch

from imsm.data.batching import IGNORE_INDEX
from imsm.models.siamese.inputs import query_mask_from_labels, to_device
from imsm.models.siamese.query_pooling import pool


@dataclass(frozen=True)
class LabelIndex:
    """The labels of a batch, each (N,) on the model's device.

    Args:
        rows: row of each label.
        columns: position whose hidden state predicts it.
        sequences: number of its sequence; the row unless packed.
        targets: the labels.
    """

    rows: torch.Tensor
    columns: torch.Tensor
    sequences: torch.Tensor
    targets: torch.Tensor


@dataclass(frozen=True)
class QueryIndex:
    """The query positions of a batch.

    Args:
        mask: 1 on query positions, (B, T), or with ``columns`` (S, Q).
        columns: packed rows: the query's positions in the flattened batch, (S, Q).
    """

    mask: torch.Tensor
    columns: torch.Tensor | None = None

    def pool(self, hidden_states: torch.Tensor, *, pooling: str) -> torch.Tensor:
        """Return the query states (S, D), in float32, of hidden states (B, T, D)."""
        if self.columns is not None:
            hidden_states = hidden_states.flatten(0, 1)[self.columns]
        return pool(hidden_states, self.mask, pooling=pooling)


def sequence_numbers(position_ids: torch.Tensor) -> torch.Tensor:
    """Return the number of the sequence of each position of packed rows, (B, T)."""
    return ((position_ids == 0).flatten().cumsum(dim=0) - 1).view_as(position_ids)


def index_labels(labels: torch.Tensor, *, sequences: torch.Tensor | None, device: torch.device) -> LabelIndex:
    """Find the labels (B, T), -100 without one; ``sequences`` (B, T) are `sequence_numbers` of packed rows."""
    # shifted: the hidden state at position t predicts token t + 1
    predicted = labels[:, 1:] != IGNORE_INDEX
    if sequences is not None:
        # not the first token of another sequence
        predicted &= sequences[:, 1:] == sequences[:, :-1]
    rows, columns = torch.nonzero(predicted, as_tuple=True)
    numbers = rows if sequences is None else sequences[rows, columns]
    found = (rows, columns, numbers, labels[rows, columns + 1])
    return LabelIndex(*(to_device(each, device) for each in found))


def index_queries(
    labels: torch.Tensor,
    *,
    attention_mask: torch.Tensor | None,
    query_mask: torch.Tensor | None,
    sequences: torch.Tensor | None,
    device: torch.device,
) -> QueryIndex:
    """Find the queries: by default everything before the first label of each sequence.

    Raises:
        ValueError: a sequence has no query, or ``query_mask`` overlaps an answer or is given for packed rows.
    """
    if sequences is None:
        mask = query_mask_from_labels(labels, attention_mask=attention_mask, query_mask=query_mask)
        return QueryIndex(to_device(mask, device))
    if query_mask is not None:
        raise ValueError("query_mask: not supported for packed rows; the query is what precedes the first label")
    # a sequence's own labels so far: those of all sequences, less those before it began
    numbers = sequences.flatten()
    counts = (labels != IGNORE_INDEX).flatten().cumsum(dim=0)
    lengths = torch.bincount(numbers)
    starts = lengths.cumsum(dim=0) - lengths
    before = counts[starts] - (labels.flatten()[starts] != IGNORE_INDEX).long()
    (positions,) = torch.nonzero(counts == before[numbers], as_tuple=True)
    query_of = numbers[positions]
    widths = torch.bincount(query_of, minlength=len(lengths))
    if not bool((widths > 0).all()):
        raise ValueError("labels: a packed sequence has no query, since each of its tokens is a label")
    columns = torch.zeros((len(lengths), int(widths.max())), dtype=torch.long, device=labels.device)
    mask = torch.zeros_like(columns, dtype=torch.bool)
    offsets = positions - starts[query_of]
    columns[query_of, offsets] = positions
    mask[query_of, offsets] = True
    return QueryIndex(to_device(mask, device), to_device(columns, device))
