"""Prompts in the tokenizer's chat template, as one user turn or as the data's turns (`data.chat_template=true`).

The default is plain text for base and instruct models alike, as in the paper.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from imsm.data.example import Turn
from imsm.utils.errors import UserError, first_line

if TYPE_CHECKING:  # transformers takes seconds to import
    from transformers import PreTrainedTokenizerBase

# the default of Llama 3.1's template, which otherwise may write today's date
_DATE = "26 Jul 2024"
# a word that no template contains
_ANSWER = "imsm"


def use_chat_template(tokenizer: PreTrainedTokenizerBase) -> None:
    """Make the template's end-of-turn token the tokenizer's EOS, which ends every answer.

    In some instruct models (Gemma's) EOS ends a document and never an assistant turn.

    Raises:
        UserError: The tokenizer has no template, or its prompts contain today's date.
    """
    if not tokenizer.chat_template:
        raise UserError(
            "data.chat_template=true: the backbone's tokenizer has no chat template; leave it "
            "out, or choose an instruct model (backbone=llama3_1_instruct)"
        )
    template = str(tokenizer.chat_template)
    if "strftime_now" in template and "date_string" not in template:
        raise UserError(
            "data.chat_template=true: the tokenizer's template writes today's date into every "
            "prompt, so runs are not reproducible; set backbone.name_or_path to a copy of the "
            "model whose template has a fixed date"
        )
    end_of_turn = _end_of_turn_id(tokenizer)
    if end_of_turn is not None and end_of_turn != tokenizer.eos_token_id:
        tokenizer.eos_token = tokenizer.convert_ids_to_tokens(end_of_turn)


def encode_chat(tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str | Sequence[Turn]]) -> list[tuple[int, ...]]:
    """Return the token ids of each prompt, a user turn or several turns, with the generation prompt.

    The template writes all special tokens, including BOS; the tokenizer adds none.
    """
    return [_encode(tokenizer, _render(tokenizer, prompt)) for prompt in prompts]


def _render(tokenizer: PreTrainedTokenizerBase, prompt: str | Sequence[Turn], *, answer: str | None = None) -> str:
    turns = [("user", prompt)] if isinstance(prompt, str) else [*prompt]
    if answer is not None:
        turns.append(("assistant", answer))
    messages = [{"role": role, "content": text} for role, text in turns]
    is_prompt = answer is None
    try:
        text = tokenizer.apply_chat_template(
            messages, add_generation_prompt=is_prompt, tokenize=False, date_string=_DATE
        )
        if not text:
            raise ValueError("it writes nothing")
    # of no other type: a template is a program, which can divide by zero
    except Exception as error:
        roles = ", ".join(role for role, _ in turns)
        raise UserError(
            f"data.chat_template=true: the tokenizer's template rejects the roles {roles} ({first_line(error)}); "
            "change the messages in the data, or omit data.chat_template"
        ) from error
    return str(text)


def _encode(tokenizer: PreTrainedTokenizerBase, text: str) -> tuple[int, ...]:
    return tuple(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])


def _end_of_turn_id(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """Return the special token that the template writes after an answer, or None."""
    ending = _render(tokenizer, "a", answer=_ANSWER).rpartition(_ANSWER)[2].lstrip()
    ids = _encode(tokenizer, ending)
    special = {*tokenizer.all_special_ids}
    # transformers lists only named special tokens in all_special_ids, not <|eot_id|>
    special |= {number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
    return ids[0] if ids and ids[0] in special else None
