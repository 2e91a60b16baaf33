"""Chat templates: one user turn with one BOS, and answers that end with the turn."""

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
"""It writes BOS, like Llama's, and ends a turn with another token than EOS, like Gemma's."""
MARKS = ["<|user|>", "<|assistant|>", "<|end|>"]


def chat_tokenizer(*, template: str = TURNS) -> PreTrainedTokenizerFast:
    tokenizer = word_tokenizer([HEAD + PASSAGE + TAIL + " pot two 26 Jul 2024"])  # it prepends <s> itself
    tokenizer.add_special_tokens({"additional_special_tokens": MARKS})
    tokenizer.chat_template = template
    return tokenizer


def example(passage: str = PASSAGE) -> Example:
    context = (len(HEAD), len(HEAD) + len(passage))
    return Example(id="own/1", prompt=HEAD + passage + TAIL, golds=("pot two",), context=context)


def words(tokenizer: PreTrainedTokenizerFast, ids: tuple[int, ...]) -> list[str]:
    return tokenizer.convert_ids_to_tokens(list(ids))


def test_a_prompt_is_one_user_turn_with_one_bos_and_the_answer_ends_the_turn() -> None:
    tokenizer = chat_tokenizer()
    use_chat_template(tokenizer)
    limits = {"max_prompt_tokens": 99, "closed_vocabulary": False, "chat": True}
    ((training,), _) = tokenize_training([example()], tokenizer, max_answer_tokens=9, **limits)
    plain = tokenizer(example().prompt, add_special_tokens=False)["input_ids"]
    text = ["<s>", "<|user|>", *words(tokenizer, plain), "<|end|>", "<|assistant|>"]
    assert words(tokenizer, training.prompt_ids) == text
    assert words(tokenizer, training.answer_ids) == ["pot", "two", "<|end|>"]
    ((evaluated,), _) = tokenize_prompts([example()], tokenizer, **limits)
    assert evaluated.prompt_ids == training.prompt_ids
    (expected,) = tokenizer.apply_chat_template(
        [[{"role": "user", "content": example().prompt}]], add_generation_prompt=True
    )["input_ids"]
    assert list(evaluated.prompt_ids) == expected


def test_the_context_is_truncated_within_the_turn() -> None:
    tokenizer = chat_tokenizer()
    shortened = [example(" ".join(PASSAGE.split()[first:])) for first in range(9)]
    encoded = encode_chat(tokenizer, [each.prompt for each in shortened])
    for limit in range(len(encoded[-1]), len(encoded[0])):
        limits = {"max_prompt_tokens": limit, "closed_vocabulary": False, "chat": True}
        ((evaluated,), stats) = tokenize_prompts([example()], tokenizer, **limits)
        assert evaluated.prompt_ids == next(ids for ids in encoded if len(ids) <= limit)
        assert words(tokenizer, evaluated.prompt_ids)[:2] == ["<s>", "<|user|>"]
        assert stats.truncated == 1


def test_eos_is_kept_if_the_template_ends_turns_with_it_or_with_no_token() -> None:
    same = chat_tokenizer(template=TURNS.replace("<|end|>", " {{ eos_token }}"))
    use_chat_template(same)
    assert same.eos_token == "</s>"
    none = chat_tokenizer(template=TURNS.replace("<|end|>", "\n"))  # no special token at all
    use_chat_template(none)
    assert none.eos_token == "</s>"


def test_a_saved_tokenizer_keeps_its_end_of_turn(tmp_path) -> None:
    tokenizer = chat_tokenizer()
    use_chat_template(tokenizer)
    tokenizer.save_pretrained(tmp_path)
    again = PreTrainedTokenizerFast.from_pretrained(tmp_path)
    assert again.eos_token == "<|end|>"
    assert encode_chat(again, ["which pot ?"]) == encode_chat(tokenizer, ["which pot ?"])


def test_a_missing_template_and_todays_date_are_rejected() -> None:
    with pytest.raises(UserError, match=r"no chat template; leave it out.*llama3_1_instruct"):
        use_chat_template(byte_tokenizer(["a b"]))
    dated = chat_tokenizer(template="{{ strftime_now('%d') }}" + TURNS)
    with pytest.raises(UserError, match="today's date"):
        use_chat_template(dated)
    switched = (
        "{% if date_string is not defined %}{% set date_string = strftime_now('%d %b %Y') %}"
        "{% endif %}{{ date_string }}"
    )
    fixed = chat_tokenizer(template=switched + TURNS)
    use_chat_template(fixed)
    (ids,) = encode_chat(fixed, ["which pot ?"])
    assert words(fixed, ids)[:5] == ["26", "Jul", "2024", "<s>", "<|user|>"]


def test_the_turns_of_the_data_are_the_turns_of_the_template() -> None:
    tokenizer = chat_tokenizer()
    use_chat_template(tokenizer)
    turns = (("user", "C: one"), ("assistant", "pot two"), ("user", "which pot ?"))
    conversation = Example(id="own/1", prompt="which pot ?", golds=("pot",), turns=turns)
    ((found,), _) = tokenize_prompts(
        [conversation], tokenizer, max_prompt_tokens=99, closed_vocabulary=False, chat=True
    )
    (expected,) = tokenizer.apply_chat_template(
        [[{"role": role, "content": text} for role, text in turns]], add_generation_prompt=True
    )["input_ids"]
    assert list(found.prompt_ids) == expected


def test_roles_that_the_template_rejects_are_a_user_error() -> None:
    refusing = TURNS.replace(
        "%}<|{{", "%}{% if m.role == 'system' %}{{ raise_exception('no system role') }}{% endif %}<|{{", 1
    )
    tokenizer = chat_tokenizer(template=refusing)
    with pytest.raises(UserError, match=r"rejects the roles system, user \(no system role\)"):
        encode_chat(tokenizer, [(("system", "one"), ("user", "two"))])


@pytest.mark.parametrize(
    "template", ["{{ 1 / 0 }}", "{% for i in range(10 ** 9) %}x{% endfor %}", "{{ messages + 5 }}", "{# #}"]
)
def test_a_template_that_fails_is_a_user_error(template: str) -> None:
    tokenizer = chat_tokenizer(template=template)
    with pytest.raises(UserError, match=r"data\.chat_template=true"):
        encode_chat(tokenizer, ["one"])
