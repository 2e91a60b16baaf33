"""Prompts to raw text: greedy, batched, with a key-value cache and an early stop."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from transformers import GenerationConfig, StoppingCriteria, StoppingCriteriaList

from imsm.data.batches import collate_prompts, evaluation_order
from imsm.progress import bar

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from imsm.data.tokenise import TokenisedExample
    from imsm.siamese.model import SiameseForCausalLM

_TAIL = 64
"""Tokens of the text so far that a stop pattern is looked for in."""


@dataclass(frozen=True, kw_only=True)
class Generation:
    """One raw answer. ``ended``: by itself or by the stop pattern, not by the token limit."""

    id: str
    text: str
    tokens: int
    ended: bool


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
    batch_size: int,
    max_new_tokens: int,
    stop: str | None,
    label: str,
    rank: int = 0,
    processes: int = 1,
) -> dict[int, Generation]:
    """The chosen stream's greedy answers, by the place of the prompt.

    Args:
        model: its ``stream`` answers.
        tokenizer: the backbone's.
        prompts: tokenised; answers are ignored.
        batch_size: prompts in one pass, sorted by length.
        max_new_tokens: at most so many tokens an answer.
        stop: regular expression on the generated text; None: until the end-of-text token.
        label: what the progress bar says.
        rank: which of the processes this is: every so many batches are its own.
        processes: how many share the batches out.
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
    answers: dict[int, Generation] = {}
    order = evaluation_order([len(p.prompt_ids) for p in prompts], batch_size=batch_size)
    own = order[rank::processes]
    total = sum(map(len, own))
    with bar(total=total, label=label, unit="item", keep=False, shown=rank == 0) as items_done:
        for indices in own:
            items = [prompts[index] for index in indices]
            batch = {
                k: v.to(model.device) for k, v in collate_prompts(items, pad_id=pad_id).items()
            }
            width = batch["input_ids"].shape[1]
            criteria = StoppingCriteriaList(
                [] if stop is None else [PatternStop(tokenizer, stop, prompt_length=width)]
            )
            rows = model.generate(**batch, generation_config=config, stopping_criteria=criteria)
            for index, row in zip(indices, rows[:, width:].tolist(), strict=True):
                answers[index] = _generation(
                    row,
                    prompts[index].id,
                    tokenizer,
                    ends=ends,
                    pad_id=pad_id,
                    limit=max_new_tokens,
                )
            items_done.update(len(items))
    return dict(sorted(answers.items()))


def end_tokens(model: SiameseForCausalLM, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The tokens that end a text: the tokenizer's and the backbone's own."""
    own = model.backbone.generation_config.eos_token_id
    listed = own if isinstance(own, list) else [own]
    return sorted({tokenizer.eos_token_id, *(token for token in listed if token is not None)})


def _generation(
    row: list[int],
    item: str,
    tokenizer: PreTrainedTokenizerBase,
    *,
    ends: list[int],
    pad_id: int,
    limit: int,
) -> Generation:
    """A row of new tokens, cut at its end and decoded."""
    length = next((place for place, token in enumerate(row) if token in ends), len(row))
    while length and row[length - 1] == pad_id:  # a row that a pattern stopped is padded
        length -= 1
    text = str(tokenizer.decode(row[:length], skip_special_tokens=True))
    ended = length < limit
    return Generation(id=item, text=text, tokens=length, ended=ended)
