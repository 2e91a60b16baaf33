"""Attention within the sequences of packed rows, without reading positions on the device.

transformers finds packed sequences itself, from position ids that restart: per mask of a forward pass it reads a
comparison on the device, also of rows that hold one sequence. A GPU's queue runs empty each time. The rows of a batch
are known here, so the search is replaced by its result.

Private: `transformers.masking_utils.find_packed_sequence_indices` (5.23) has no public switch. A version without it
searches as before, with the same result.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers import masking_utils

_SEARCH = "find_packed_sequence_indices"


@contextmanager
def known_sequences(numbers: torch.Tensor | None) -> Iterator[None]:
    """Inside, masks separate the sequences ``numbers`` (B, T); None: each row is one sequence."""
    search = getattr(masking_utils, _SEARCH, None)
    if search is None:
        yield
        return
    setattr(masking_utils, _SEARCH, lambda position_ids: numbers)
    try:
        yield
    finally:
        setattr(masking_utils, _SEARCH, search)


def flash_attention_kwargs(position_ids: torch.Tensor, *, device: torch.device) -> dict[str, Any]:
    """Return the arguments of transformers' variable-length flash attention for packed rows, (B, T) on the CPU."""
    (starts,) = torch.nonzero(position_ids.flatten() == 0, as_tuple=True)
    ends = torch.cat([starts, torch.tensor([position_ids.numel()], device=starts.device)])
    longest = int(ends.diff().max())
    boundaries = ends.to(device, torch.int32)
    return {"cu_seq_lens_q": boundaries, "cu_seq_lens_k": boundaries, "max_length_q": longest, "max_length_k": longest}
