"""Attention within the sequences of packed rows, without reading positions on the device.

Flash attention gets the boundaries of the sequences. SDPA, while it is replaced by `PACKED_SDPA`, runs once per
sequence: a mask over the row would cost the square of its length. Other attentions get such a mask.

transformers finds packed sequences itself, from position ids that restart: per mask of a forward pass it reads a
comparison on the device, also of rows that hold one sequence. A GPU's queue runs empty each time. The rows of a batch
are known here, so the search is replaced by its result.

Not every model separates packed sequences (recurrent layers, attention biases by column): `check_packing` compares
before the first step.

Private: `transformers.masking_utils.find_packed_sequence_indices` (5.23) has no public switch. A version without it
searches as before, with the same result.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel, masking_utils
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from imsm.models.siamese.streams import StreamRunner
from imsm.utils.errors import UserError

PACKED_SDPA = "imsm_packed_sdpa"
"""Name of SDPA per sequence among transformers' attentions; rows without `sequence_lengths` run plain SDPA."""
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


@contextmanager
def packed_sdpa(backbone: PreTrainedModel) -> Iterator[None]:
    """Inside, a backbone with SDPA attention runs `PACKED_SDPA`."""
    before = backbone.config._attn_implementation
    if before != "sdpa":
        yield
        return
    backbone.set_attn_implementation(PACKED_SDPA)
    try:
        yield
    finally:
        backbone.set_attn_implementation(before)


def attention_arguments(
    decoder: Any, position_ids: torch.Tensor, numbers: torch.Tensor, *, device: torch.device
) -> tuple[dict[str, Any], torch.Tensor | None]:
    """Return further arguments of the decoder for packed rows, and the numbers that masks need (`known_sequences`).

    ``position_ids`` and ``numbers``, the sequence of each position, are (B, T), where the collator made them.
    """
    attention = str(decoder.config.get_text_config(decoder=True)._attn_implementation)
    (starts,) = torch.nonzero(position_ids.flatten() == 0, as_tuple=True)
    ends = torch.cat([starts, starts.new_tensor([position_ids.numel()])])
    lengths = ends.diff().tolist()
    if "flash" in attention:
        boundaries, longest = ends.to(device, torch.int32), max(lengths)
        return {
            **dict.fromkeys(("cu_seq_lens_q", "cu_seq_lens_k"), boundaries),
            **dict.fromkeys(("max_length_q", "max_length_k"), longest),
        }, None
    if attention == PACKED_SDPA and len(position_ids) == 1:
        return {"sequence_lengths": tuple(lengths)}, None
    return {}, numbers.to(device)


def _packed_sdpa(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    sequence_lengths: tuple[int, ...] | None = None,
    sliding_window: int | None = None,
    is_causal: bool | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Attend within each sequence of query, key and value, (1, heads, T, head size); return (1, T, heads, head size).

    The arguments are those of transformers' attentions.
    """
    if sequence_lengths is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, is_causal=is_causal, **kwargs)
    outputs = []
    for q, k, v in zip(*(each.split(sequence_lengths, dim=2) for each in (query, key, value)), strict=True):
        mask = None
        if sliding_window is not None and q.shape[2] > sliding_window:
            steps = torch.arange(q.shape[2], device=q.device)
            distance = steps[:, None] - steps
            mask = ((distance >= 0) & (distance < sliding_window))[None, None]
        outputs.append(sdpa_attention_forward(module, q, k, v, mask, is_causal=mask is None, **kwargs)[0])
    return torch.cat(outputs, dim=1), None


AttentionInterface.register(PACKED_SDPA, _packed_sdpa)
AttentionMaskInterface.register(PACKED_SDPA, sdpa_mask)


@torch.no_grad()
def check_packing(streams: StreamRunner, *, vocab_size: int, device: torch.device) -> None:
    """Compare three short sequences in one packed row with each of them alone, in the original and the tuned stream.

    Raises:
        UserError: The hidden states differ, or the PEFT method adds virtual tokens or layers of attention.
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
    numbers = torch.repeat_interleave(torch.arange(len(_LENGTHS)), torch.tensor(_LENGTHS))[None]
    inputs: dict[str, Any] = {"input_ids": ids, "position_ids": positions.to(device)}
    arguments, masked = attention_arguments(streams.decoder, positions, numbers, device=device)
    for stream in ("original", "tuned"):
        with known_sequences(masked):
            packed = streams.hidden_states(inputs | arguments, stream=stream, cache=None)[0]
        with known_sequences(None):
            alone = [
                streams.hidden_states({"input_ids": each}, stream=stream, cache=None)[0]
                for each in ids.split(_LENGTHS, dim=1)
            ]
        expected = torch.cat(alone).float()
        error = ((packed.float() - expected).norm(dim=-1) / expected.norm(dim=-1).clamp(min=1e-9)).max()
        if not float(error) <= _TOLERANCE.get(packed.dtype, 5e-2):
            raise UserError(
                f"trainer.packing=true: {type(streams.decoder).__name__} does not separate packed sequences "
                f"(relative error {float(error):.1e}); omit it, and set trainer.micro_batch_tokens alone"
            )
