"""Prompts as an instruct model was taught to read them: one user turn in its chat template.

An option (``data.chat_template=true``): the paper asks base and instruct models alike, in plain
text.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from imsm.utils.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_DATE = "26 Jul 2024"
"""What Llama's templates are told of today (Llama 3.1's own default), on every day."""
_ANSWER = "imsm"


def use_chat_template(tokenizer: PreTrainedTokenizerBase) -> None:
    """Let the template's end of a turn end every answer: it becomes the tokenizer's EOS.

    For most instruct models it is that already; for some (Gemma's) EOS ends a document, and an
    answer that ends with it is none that the model knows.

    Raises:
        UserError: there is no template, or its prompts would change with the day.
    """
    if not tokenizer.chat_template:
        raise UserError(
            "data.chat_template=true: this backbone's tokenizer has no chat template; leave it "
            "out, or choose an instruct model (backbone=llama3_1_instruct)"
        )
    template = str(tokenizer.chat_template)
    if "strftime_now" in template and "date_string" not in template:
        raise UserError(
            "data.chat_template=true: this tokenizer's template writes today's date into every "
            "prompt, so no run could be repeated; give backbone.name_or_path=<a copy of the model's "
            "folder> whose template has a fixed date"
        )
    end = _end_of_turn(tokenizer)
    if end is not None and end != tokenizer.eos_token_id:
        tokenizer.eos_token = tokenizer.convert_ids_to_tokens(end)


def encode_chat(tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str]) -> list[tuple[int, ...]]:
    """Token ids of each prompt as one user turn, up to where the assistant's answer begins.

    The template writes its own special tokens, BOS among them; no more are added.
    """
    return [_ids(tokenizer, _rendered(tokenizer, prompt)) for prompt in prompts]


def _rendered(tokenizer: PreTrainedTokenizerBase, prompt: str, *, answer: str | None = None) -> str:
    turns = [{"role": "user", "content": prompt}]
    if answer is not None:
        turns.append({"role": "assistant", "content": answer})
    text = tokenizer.apply_chat_template(
        turns, add_generation_prompt=answer is None, tokenize=False, date_string=_DATE
    )
    return str(text)


def _ids(tokenizer: PreTrainedTokenizerBase, text: str) -> tuple[int, ...]:
    return tuple(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])


def _end_of_turn(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """The special token that the template writes behind an answer; None if it writes none."""
    behind = _rendered(tokenizer, "a", answer=_ANSWER).rpartition(_ANSWER)[2].lstrip()
    ids = _ids(tokenizer, behind)
    special = {*tokenizer.all_special_ids}
    special |= {number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
    return ids[0] if ids and ids[0] in special else None
