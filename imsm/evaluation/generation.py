"""Batched greedy decoding with a KV cache and stop patterns."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean

import torch
from transformers import PreTrainedTokenizerBase

from imsm.evaluation.stop_pattern import finished_finder
from imsm.models.siamese.decoding_session import DecodingSession
from imsm.models.siamese.model import SiameseForCausalLM
from imsm.models.siamese.skip import CHOICES
from imsm.models.siamese.static_decoding import StaticDecodingSession

_MAX_GATE_TOKENS, _GATE_DECIMALS = 64, 5
"""Number of positions whose gate is stored with a response, and its decimal places."""
_COMPACT_BELOW, _COMPACT_STATIC_BELOW = 0.85, 0.5
"""Compact the batch when at most this fraction of its rows is unfinished; a static cache then records a new graph."""


@dataclass(frozen=True, kw_only=True)
class Generation:
    """One response.

    Attributes:
        text: The decoded text.
        tokens: Number of tokens, without the EOS token.
        ended: Whether generation ended with EOS or the stop pattern, not at the token limit.
        gate_mean: Mean weight of the original stream over all generated positions, EOS included;
            None unless the stream is "interwoven".
        gate_per_token: The weights at the first positions, likewise.
        token_texts: The text of these tokens, likewise.
        choice: Streams that generated it, "tuned", "original" or "both"; None without `skip_threshold`.
    """

    text: str
    tokens: int
    ended: bool
    gate_mean: float | None
    gate_per_token: list[float] | None
    token_texts: list[str] | None
    choice: str | None = None


@torch.inference_mode()
def generate_responses(
    session: DecodingSession,
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_new_tokens: int,
    stop: str | None,
    static_cache: bool = False,
) -> list[Generation]:
    """Decode greedily until every prompt of the session has its response.

    The session is consumed by this call. ``stop`` is a regular expression on the generated text; None:
    stop at EOS only. ``static_cache``: continue after the first token with a `StaticDecodingSession`.

    Raises:
        UserError: The model cannot be decoded with a static cache.
    """
    decoding: DecodingSession | StaticDecodingSession = session
    compact_below = _COMPACT_STATIC_BELOW if static_cache else _COMPACT_BELOW
    eos = eos_token_ids(session.model, tokenizer)
    find_finished = finished_finder(tokenizer, eos=eos, stop=stop)
    tokens: list[list[int]] = [[] for _ in range(len(session))]
    gates: list[list[float]] = [[] for _ in range(len(session))]
    # The prompt of each row of the session; rows are dropped while others are unfinished.
    prompts = list(range(len(session)))
    unfinished = set(prompts)
    choices = [None] * len(session) if session.choices is None else [CHOICES[c] for c in session.choices.tolist()]
    while True:
        next_tokens = decoding.logits.argmax(dim=-1)
        new, weights = _read_step(next_tokens, decoding.gate)
        # Finished rows are decoded until the batch is compacted; their further tokens are ignored.
        for row, token in enumerate(new):
            if prompts[row] in unfinished:
                tokens[prompts[row]].append(token)
                if weights is not None:
                    gates[prompts[row]].append(weights[row])
        unfinished -= find_finished({index: tokens[index] for index in unfinished})
        # All unfinished rows have the same number of tokens.
        if not unfinished or len(tokens[min(unfinished)]) == max_new_tokens:
            break
        # Compacting copies the KV cache, so it waits until enough rows are finished.
        if len(unfinished) <= compact_below * len(prompts):
            rows = [row for row, index in enumerate(prompts) if index in unfinished]
            decoding.select_rows(rows)
            next_tokens, prompts = next_tokens[rows], [prompts[row] for row in rows]
        decoding.forward(next_tokens[:, None])
        if static_cache and isinstance(decoding, DecodingSession):
            # the first token after the query completes what the gate reads of it
            decoding = StaticDecodingSession(decoding, max_new_tokens=max_new_tokens)
    return [
        build_generation(row, row_gates or None, tokenizer, choice=choice, eos=eos, limit=max_new_tokens)
        for row, row_gates, choice in zip(tokens, gates, choices, strict=True)
    ]


def _read_step(tokens: torch.Tensor, gate: torch.Tensor | None) -> tuple[list[int], list[float] | None]:
    """Return the values of tokens (B,) and gate (B,); of both in one transfer, because each waits for the device."""
    if gate is None:
        return tokens.tolist(), None
    # float64 holds every token id and every gate exactly
    new, weights = torch.stack([tokens.double(), gate.double()]).tolist()
    return [int(token) for token in new], weights


def end_of_response(
    tokens: Sequence[int], tokenizer: PreTrainedTokenizerBase, *, eos: Sequence[int], stop: str | None
) -> int:
    """Return after how many of the tokens `generate_responses` would have ended; all of them without EOS and stop."""
    find_finished = finished_finder(tokenizer, eos=eos, stop=stop)
    ends = (length for length in range(1, len(tokens) + 1) if find_finished({0: list(tokens[:length])}))
    return next(ends, len(tokens))


def eos_token_ids(model: SiameseForCausalLM, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return the EOS tokens of the tokenizer and of the backbone's generation config."""
    # Chat models list their end-of-turn token in the generation config only.
    configured = model.backbone.generation_config.eos_token_id
    listed = configured if isinstance(configured, list) else [configured]
    return sorted({tokenizer.eos_token_id, *(token for token in listed if token is not None)})


def build_generation(
    row: list[int],
    weights: list[float] | None,
    tokenizer: PreTrainedTokenizerBase,
    *,
    choice: str | None,
    eos: Sequence[int],
    limit: int,
) -> Generation:
    """Return the response of generated tokens, which end with EOS, at a stop pattern or at ``limit`` tokens.

    ``weights`` are the gate at each of them.
    """
    length = len(row) - (row[-1] in eos)
    return Generation(
        text=str(tokenizer.decode(row[:length], skip_special_tokens=True)),
        tokens=length,
        # EOS as the last allowed token counts as ended, a stop pattern there does not.
        ended=length < limit,
        gate_mean=None if weights is None else round(fmean(weights), _GATE_DECIMALS),
        gate_per_token=None if weights is None else [round(w, _GATE_DECIMALS) for w in weights[:_MAX_GATE_TOKENS]],
        token_texts=None if weights is None else _token_texts(row[:_MAX_GATE_TOKENS], tokenizer),
        choice=choice,
    )


def _token_texts(tokens: list[int], tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Return the text that each token adds to the decoded sequence, EOS included."""
    # Decoding a token alone would drop the space before it and split multi-byte characters.
    prefixes = [str(tokenizer.decode(tokens[:end])) for end in range(len(tokens) + 1)]
    return [text.removeprefix(before) for before, text in pairwise(prefixes)]
