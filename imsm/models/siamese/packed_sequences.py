"""Attention within the sequences of packed rows, without reading positions on the device.

transformers finds packed sequences itself, from position ids that restart: per mask of a forward pass it reads a
comparison on the device, also of rows that hold one sequence. A GPU's queue runs empty each time. The rows of a batch
are known here, so the search is replaced by its result.

Not every model keeps packed sequences apart (recurrent layers, attention biases by column), so `check_packing` compares
before the first step.

Private: `transformers.masking_utils.find_packed_sequence_indices` (5.23) has no public switch. A version without it
searches as before, with the same result.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers import masking_utils

from imsm.models.siamese.streams import StreamRunner
from imsm.utils.errors import UserError

_TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-6}
"""Largest relative error of the last hidden states; half precision: 5e-2."""
_LENGTHS = (5, 9, 3)
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


@torch.no_grad()
def check_packing(streams: StreamRunner, *, vocab_size: int, device: torch.device) -> None:
    """Compare three short sequences in one packed row with each of them alone, in the original and the tuned stream.

    Raises:
        UserError: The hidden states differ, or the PEFT method adds virtual tokens or attention of its own.
    """
    if streams.virtual_tokens is not None or not streams.adapter_layers.supports_dual:
        raise UserError(
            "trainer.packing=true: the PEFT method adds positions to every sequence; omit it, and set "
            "trainer.micro_batch_tokens alone"
        )
    # distinct tokens, so that a look into another sequence shows
    tokens = [(7 * step + 3) % vocab_size for step in range(sum(_LENGTHS))]
    ids = torch.tensor([tokens], device=device)
    positions = torch.cat([torch.arange(length) for length in _LENGTHS])[None]
    numbers = torch.repeat_interleave(torch.arange(len(_LENGTHS)), torch.tensor(_LENGTHS))[None].to(device)
    inputs: dict[str, Any] = {"input_ids": ids, "position_ids": positions.to(device)}
    if uses_flash_attention(streams.decoder):
        inputs |= flash_attention_kwargs(positions, device=device)
    for stream in ("original", "tuned"):
        with known_sequences(numbers):
            packed = streams.hidden_states(inputs, stream=stream, cache=None)[0]
        with known_sequences(None):
            alone = [
                streams.hidden_states({"input_ids": each}, stream=stream, cache=None)[0]
                for each in ids.split(_LENGTHS, dim=1)
            ]
        expected = torch.cat(alone).float()
        error = ((packed.float() - expected).norm(dim=-1) / expected.norm(dim=-1).clamp(min=1e-9)).max()
        if not float(error) <= _TOLERANCE.get(packed.dtype, 5e-2):
            raise UserError(
                f"trainer.packing=true: {type(streams.decoder).__name__} does not keep packed sequences apart "
                f"(relative error {float(error):.1e}); omit it, and set trainer.micro_batch_tokens alone"
            )


def uses_flash_attention(decoder: Any) -> bool:
    """Return whether the decoder's attention takes the boundaries of packed sequences."""
    return "flash" in str(decoder.config.get_text_config(decoder=True)._attn_implementation)
