"""Chat templates: one user turn, one BOS, the context cut inside it, the turn's end taught."""

from __future__ import annotations

import pytest
from transformers import PreTrainedTokenizerFast

from imsm.data.chat_template import encode_chat, use_chat_template
from imsm.data.example import Example
from imsm.data.tokenization import tokenize_prompts, tokenize_training
from imsm.utils.errors import UserError
from tests.data.tokenizers import byte_tokenizer, word_tokenizer

HEAD, TAIL = "Answer by the text .\nC: ", "\nQ: which pot ?\nA:"
PASSAGE = "one two three four five six seven eight"
TURNS = (
    "{{ bos_token }}{% for m in messages %}<|{{ m.role }}|>{{ m.content | trim }}<|end|>"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
"""With a BOS of its own, as Llama's; a turn ends otherwise than a text, as Gemma's."""
MARKS = ["<|user|>", "<|assistant|>", "<|end|>"]


def chatting(*, template: str = TURNS) -> PreTrainedTokenizerFast:
    tokenizer = word_tokenizer([HEAD + PASSAGE + TAIL + " pot two 26 Jul 2024"])  # it adds <s> in front itself
    tokenizer.add_special_tokens({"additional_special_tokens": MARKS})
    tokenizer.chat_template = template
    return tokenizer


def example(passage: str = PASSAGE) -> Example:
    context = (len(HEAD), len(HEAD) + len(passage))
    return Example(id="own/1", prompt=HEAD + passage + TAIL, golds=("pot two",), context=context)


def words(tokenizer: PreTrainedTokenizerFast, ids: tuple[int, ...]) -> list[str]:
    return tokenizer.convert_ids_to_tokens(list(ids))


def test_a_prompt_is_one_user_turn_with_one_bos_and_an_answer_ends_its_turn() -> None:
    tokenizer = chatting()
    use_chat_template(tokenizer)
    limits = {"max_prompt_tokens": 99, "closed_vocabulary": False, "chat": True}
    ((taught,), _) = tokenize_training([example()], tokenizer, max_answer_tokens=9, **limits)
    plain = tokenizer(example().prompt, add_special_tokens=False)["input_ids"]
    text = ["<s>", "<|user|>", *words(tokenizer, plain), "<|end|>", "<|assistant|>"]
    assert words(tokenizer, taught.prompt_ids) == text
    assert words(tokenizer, taught.answer_ids) == ["pot", "two", "<|end|>"]
    ((asked,), _) = tokenize_prompts([example()], tokenizer, **limits)
    assert asked.prompt_ids == taught.prompt_ids
    (whole,) = tokenizer.apply_chat_template(
        [[{"role": "user", "content": example().prompt}]], add_generation_prompt=True
    )["input_ids"]
    assert list(asked.prompt_ids) == whole


def test_the_context_is_cut_inside_the_turn_and_no_further_than_needed() -> None:
    tokenizer = chatting()
    rests = [example(" ".join(PASSAGE.split()[first:])) for first in range(9)]
    whole = encode_chat(tokenizer, [rest.prompt for rest in rests])
    for limit in range(len(whole[-1]), len(whole[0])):
        limits = {"max_prompt_tokens": limit, "closed_vocabulary": False, "chat": True}
        ((asked,), report) = tokenize_prompts([example()], tokenizer, **limits)
        assert asked.prompt_ids == next(ids for ids in whole if len(ids) <= limit)
        assert words(tokenizer, asked.prompt_ids)[:2] == ["<s>", "<|user|>"]
        assert report.cut == 1


def test_the_end_of_text_stays_where_the_template_ends_turns_with_it() -> None:
    same = chatting(template=TURNS.replace("<|end|>", " {{ eos_token }}"))
    use_chat_template(same)
    assert same.eos_token == "</s>"
    none = chatting(template=TURNS.replace("<|end|>", "\n"))  # no special token at all
    use_chat_template(none)
    assert none.eos_token == "</s>"


def test_a_saved_tokenizer_still_ends_with_the_turn(tmp_path) -> None:
    tokenizer = chatting()
    use_chat_template(tokenizer)
    tokenizer.save_pretrained(tmp_path)
    again = PreTrainedTokenizerFast.from_pretrained(tmp_path)
    assert again.eos_token == "<|end|>"
    assert encode_chat(again, ["which pot ?"]) == encode_chat(tokenizer, ["which pot ?"])


def test_no_template_and_todays_date_are_refused() -> None:
    with pytest.raises(UserError, match=r"no chat template; leave it out.*llama3_1_instruct"):
        use_chat_template(byte_tokenizer(["a b"]))
    dated = chatting(template="{{ strftime_now('%d') }}" + TURNS)
    with pytest.raises(UserError, match="today's date"):
        use_chat_template(dated)
    switched = (
        "{% if date_string is not defined %}{% set date_string = strftime_now('%d %b %Y') %}"
        "{% endif %}{{ date_string }}"
    )
    fixed = chatting(template=switched + TURNS)
    use_chat_template(fixed)
    (ids,) = encode_chat(fixed, ["which pot ?"])
    assert words(fixed, ids)[:5] == ["26", "Jul", "2024", "<s>", "<|user|>"]
