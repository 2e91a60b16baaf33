"""Prompts to raw text: greedy, batched, with a key-value cache and an early stop."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean
from typing import TYPE_CHECKING

import torch
from transformers import GenerationConfig, StoppingCriteria, StoppingCriteriaList

from imsm.data.batches import collate_prompts

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from imsm.data.tokenise import TokenisedExample
    from imsm.siamese.model import SiameseForCausalLM, SiameseOutput

_TAIL = 64
"""Tokens of the text so far that a stop pattern is looked for in."""
_SHOWN, _PLACES = 64, 5
"""How many positions' gates are kept with an answer, and to how many decimal places."""


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
    gate_tokens: list[float] | None
    gate_pieces: list[str] | None


class PatternStop(StoppingCriteria):
    """Stops a row as soon as its generated text matches a pattern."""

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, pattern: str, *, prompt_length: int
    ) -> None:
        self.tokenizer = tokenizer
        self.pattern = re.compile(pattern)
        self.prompt_length = prompt_length
        self.done: torch.Tensor | None = None

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **_: object) -> torch.Tensor:
        """Which rows are done, (B,)."""
        if self.done is None:
            self.done = torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)
        first = max(self.prompt_length, input_ids.shape[1] - _TAIL)
        going = (~self.done).nonzero()[:, 0].tolist()
        texts = self.tokenizer.batch_decode(input_ids[going, first:], skip_special_tokens=True)
        for row, text in zip(going, texts, strict=True):
            if self.pattern.search(text):
                self.done[row] = True
        return self.done


@torch.inference_mode()
def generate_answers(
    model: SiameseForCausalLM,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[TokenisedExample],
    *,
    max_new_tokens: int,
    stop: str | None,
) -> list[Generation]:
    """The chosen stream's greedy answers to one batch of prompts.

    Args:
        model: its ``stream`` answers.
        tokenizer: the backbone's.
        prompts: B of them, tokenised; answers are ignored.
        max_new_tokens: at most so many tokens an answer.
        stop: regular expression on the generated text; None: until the end-of-text token.
    """
    ends = end_tokens(model, tokenizer)
    pad_id = tokenizer.pad_token_id
    config = GenerationConfig(
        do_sample=False,
        num_beams=1,
        repetition_penalty=1.0,
        max_new_tokens=max_new_tokens,
        eos_token_id=ends,
        pad_token_id=pad_id,
    )
    batch = {k: v.to(model.device) for k, v in collate_prompts(prompts, pad_id=pad_id).items()}
    width = batch["input_ids"].shape[1]
    criteria = StoppingCriteriaList(
        [] if stop is None else [PatternStop(tokenizer, stop, prompt_length=width)]
    )
    gates: list[torch.Tensor] = []  # (B,) of every step
    with _watched(model, gates):
        rows = model.generate(**batch, generation_config=config, stopping_criteria=criteria)
    weights = torch.stack(gates, dim=1).tolist() if gates else [None] * len(prompts)
    return [
        _generation(row, weight, tokenizer, ends=ends, pad_id=pad_id, limit=max_new_tokens)
        for row, weight in zip(rows[:, width:].tolist(), weights, strict=True)
    ]


@contextmanager
def _watched(model: SiameseForCausalLM, gates: list[torch.Tensor]) -> Iterator[None]:
    """Note the gate at the last position of every pass: where the next token is chosen."""

    def note(_: object, __: object, output: SiameseOutput) -> None:
        if output.gate is not None:
            gates.append(output.gate[:, -1].float())

    hook = model.register_forward_hook(note)
    try:
        yield
    finally:
        hook.remove()


def end_tokens(model: SiameseForCausalLM, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The tokens that end a text: the tokenizer's and the backbone's own."""
    own = model.backbone.generation_config.eos_token_id
    listed = own if isinstance(own, list) else [own]
    return sorted({tokenizer.eos_token_id, *(token for token in listed if token is not None)})


def _generation(
    row: list[int],
    weights: list[float] | None,
    tokenizer: PreTrainedTokenizerBase,
    *,
    ends: list[int],
    pad_id: int,
    limit: int,
) -> Generation:
    """A row of new tokens, cut at its end and decoded, with the gate at each of them."""
    length = next((place for place, token in enumerate(row) if token in ends), len(row))
    positions = min(length + 1, len(row))  # the end was chosen too
    if length == len(row):
        while length and row[length - 1] == pad_id:  # a row that a pattern stopped is padded
            length -= 1
        positions = length
    own = None if weights is None or not positions else weights[:positions]
    return Generation(
        text=str(tokenizer.decode(row[:length], skip_special_tokens=True)),
        tokens=length,
        ended=length < limit,
        gate_mean=None if own is None else round(fmean(own), _PLACES),
        gate_tokens=None if own is None else [round(each, _PLACES) for each in own[:_SHOWN]],
        gate_pieces=None if own is None else _pieces(row[: len(own)][:_SHOWN], tokenizer),
    )


def _pieces(tokens: list[int], tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Each token's own text, as it stands in the whole: the end's too."""
    texts = [str(tokenizer.decode(tokens[:end])) for end in range(len(tokens) + 1)]
    return [text.removeprefix(before) for before, text in pairwise(texts)]
