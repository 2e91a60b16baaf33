"""Prompts to raw text: greedy, batched, with a key-value cache and an early stop."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from imsm.models.siamese.decoding_session import DecodingSession
    from imsm.models.siamese.model import SiameseForCausalLM

_TAIL = 64
"""Tokens of the text so far that a stop pattern is looked for in."""
_SHOWN, _PLACES = 64, 5
"""How many positions' gates are kept with an answer, and to how many decimal places."""
_MOST = 0.85
"""When no more than this share of the rows that are read still goes on, the others are dropped."""


@dataclass(frozen=True, kw_only=True)
class Generation:
    """One raw answer.

    ``tokens`` without the end's own; ``ended``: by itself or by the stop pattern, not by the token
    limit. ``gate_mean``: the original memory's mean weight over all generated positions, the
    end's too (interwoven stream only); ``gate_tokens``: at the first ones of them, whose texts are
    ``gate_pieces``.
    """

    text: str
    tokens: int
    ended: bool
    gate_mean: float | None
    gate_per_token: list[float] | None
    token_texts: list[str] | None


@torch.inference_mode()
def generate_responses(
    reading: DecodingSession, tokenizer: PreTrainedTokenizerBase, *, max_new_tokens: int, stop: str | None
) -> list[Generation]:
    """The greedy answers to a batch of prompts; a row that has its answer is let go of.

    Args:
        reading: of the prompts; when all is said it is used up.
        tokenizer: the backbone's.
        max_new_tokens: at most so many tokens an answer.
        stop: regular expression on the generated text; None: until the end-of-text token.
    """
    ends = eos_token_ids(reading.model, tokenizer)
    over = _over(tokenizer, ends=ends, stop=stop)
    tokens: list[list[int]] = [[] for _ in range(len(reading))]
    gates: list[list[float]] = [[] for _ in range(len(reading))]
    read = list(range(len(reading)))  # whose the reading's rows are
    going = set(read)
    while True:
        chosen = reading.logits.argmax(dim=-1)
        shares = None if reading.gate is None else reading.gate.tolist()
        for row, token in enumerate(chosen.tolist()):
            if read[row] in going:
                tokens[read[row]].append(token)
                if shares is not None:
                    gates[read[row]].append(shares[row])
        going -= over({place: tokens[place] for place in going})
        if not going or len(tokens[min(going)]) == max_new_tokens:
            break
        if len(going) <= _MOST * len(read):
            rows = [row for row, place in enumerate(read) if place in going]
            reading.select_rows(rows)
            chosen, read = chosen[rows], [read[row] for row in rows]
        reading.forward(chosen[:, None])
    return [
        _generation(row, own or None, tokenizer, ends=ends, limit=max_new_tokens)
        for row, own in zip(tokens, gates, strict=True)
    ]


def _over(
    tokenizer: PreTrainedTokenizerBase, *, ends: Sequence[int], stop: str | None
) -> Callable[[dict[int, list[int]]], set[int]]:
    """Tells of rows of new tokens which are answers that have ended."""
    pattern = None if stop is None else re.compile(stop)

    def over(rows: dict[int, list[int]]) -> set[int]:
        ended = {place for place, row in rows.items() if row[-1] in ends}
        if pattern is not None:
            tails = [row[-_TAIL:] for row in rows.values()]
            texts = tokenizer.batch_decode(tails, skip_special_tokens=True)
            found = zip(rows, texts, strict=True)
            ended |= {place for place, text in found if pattern.search(text)}
        return ended

    return over


def eos_token_ids(model: SiameseForCausalLM, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The tokens that end a text: the tokenizer's and the backbone's own."""
    own = model.backbone.generation_config.eos_token_id
    listed = own if isinstance(own, list) else [own]
    return sorted({tokenizer.eos_token_id, *(token for token in listed if token is not None)})


def _generation(
    row: list[int], weights: list[float] | None, tokenizer: PreTrainedTokenizerBase, *, ends: Sequence[int], limit: int
) -> Generation:
    """A row of new tokens, without its end and decoded, with the gate at each of them."""
    length = len(row) - (row[-1] in ends)
    return Generation(
        text=str(tokenizer.decode(row[:length], skip_special_tokens=True)),
        tokens=length,
        ended=length < limit,
        gate_mean=None if weights is None else round(fmean(weights), _PLACES),
        gate_per_token=None if weights is None else [round(w, _PLACES) for w in weights[:_SHOWN]],
        token_texts=None if weights is None else _pieces(row[:_SHOWN], tokenizer),
    )


def _pieces(tokens: list[int], tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Each token's own text, as it stands in the whole: the end's too."""
    texts = [str(tokenizer.decode(tokens[:end])) for end in range(len(tokens) + 1)]
    return [text.removeprefix(before) for before, text in pairwise(texts)]
