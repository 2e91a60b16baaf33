"""Prompt masked, EOS taught, question whole, context cut from the left, closed vocabulary."""

from __future__ import annotations

from typing import Any

import pytest

from imsm.data.example import Example
from imsm.data.tokenization import tokenize_prompts, tokenize_training
from imsm.utils.errors import UserError
from tests.data.tokenizers import SlowTokenizer, byte_tokenizer, word_tokenizer

HEAD, TAIL = "Answer by the text .\nC: ", "\nQ: which pot ?\nA:"
PASSAGE = "one two three four five six seven eight nine ten"


def example(passage: str = PASSAGE, gold: str = "pot two", number: int = 0) -> Example:
    context = (len(HEAD), len(HEAD) + len(passage))
    prompt = HEAD + passage + TAIL
    return Example(id=f"own/test/{number}", prompt=prompt, golds=(gold, "other"), context=context)


def without_context(prompt: str = HEAD + PASSAGE + TAIL) -> Example:
    return Example(id="own/test/9", prompt=prompt, golds=("pot two",))


TEXTS = [HEAD + PASSAGE + TAIL + " pot two other"]
TOKENIZERS = {
    "words": word_tokenizer(TEXTS),
    "words, EOS added": word_tokenizer(TEXTS, eos_added=True),
    "bytes": byte_tokenizer(TEXTS),
    "slow": SlowTokenizer(),
}


def train(examples: list[Example], tokenizer: Any, prompt: int = 999, answer: int = 99) -> Any:
    return tokenize_training(
        examples, tokenizer, max_prompt_tokens=prompt, max_answer_tokens=answer, closed_vocabulary=False
    )


def evaluate(examples: list[Example], tokenizer: Any, prompt: int) -> Any:
    return tokenize_prompts(examples, tokenizer, max_prompt_tokens=prompt, closed_vocabulary=False)


def test_prompt_and_answer_apart_with_bos_in_front_and_eos_behind() -> None:
    tokenizer = TOKENIZERS["words"]
    ((item,), report) = train([example()], tokenizer)
    assert item.id == "own/test/0"
    assert item.prompt_ids[0] == tokenizer.bos_token_id
    assert tokenizer.convert_ids_to_tokens(list(item.answer_ids)) == ["pot", "two", "</s>"]
    assert tokenizer.eos_token_id not in item.prompt_ids
    assert report.warning() is None


def test_an_eos_that_the_tokenizer_adds_is_not_left_in_the_prompt() -> None:
    plain = train([example()], TOKENIZERS["words"])[0]
    assert train([example()], TOKENIZERS["words, EOS added"])[0] == plain


def test_evaluation_has_the_prompts_of_training_and_no_answer() -> None:
    for tokenizer in TOKENIZERS.values():
        taught, _ = train([example()], tokenizer)
        asked, _ = evaluate([example()], tokenizer, 999)
        assert asked[0].prompt_ids == taught[0].prompt_ids
        assert asked[0].answer_ids == ()


@pytest.mark.parametrize("name", TOKENIZERS)
def test_context_is_cut_from_the_left_and_no_further_than_needed(name: str) -> None:
    tokenizer = TOKENIZERS[name]
    words = PASSAGE.split()
    rests = [example(" ".join(words[first:])) for first in range(len(words) + 1)]
    by_rest = [item.prompt_ids for item in evaluate(rests, tokenizer, 999)[0]]
    lengths = [len(ids) for ids in by_rest]
    assert lengths == sorted(lengths, reverse=True)
    for limit in range(lengths[-1], lengths[0]):
        (item,), report = evaluate([example()], tokenizer, limit)
        expected = next(ids for ids in by_rest if len(ids) <= limit)
        assert item.prompt_ids == expected
        assert (report.examples, report.cut, report.too_long) == (1, 1, 0)
        assert train([example()], tokenizer, limit)[0][0].prompt_ids == expected
    assert report.warning() == "Of 1 examples 1 had their context cut from the left."


@pytest.mark.parametrize("name", TOKENIZERS)
def test_what_no_cut_makes_fit_is_dropped_from_training_and_kept_whole_in_evaluation(name: str) -> None:
    tokenizer = TOKENIZERS[name]
    short = example("")
    limit = len(evaluate([short], tokenizer, 999)[0][0].prompt_ids)
    examples = [short, without_context()]
    kept, report = train(examples, tokenizer, limit)
    assert [item.id for item in kept] == ["own/test/0"]
    assert (report.cut, report.too_long, report.dropped) == (0, 1, 1)
    assert report.warning() == "Of 2 examples 1 with a prompt too long to cut were dropped."
    asked, report = evaluate(examples, tokenizer, limit)
    assert asked[1] == evaluate(examples, tokenizer, 999)[0][1]
    assert report.warning() == "Of 2 examples 1 with a prompt too long to cut were kept whole."
    asked, _ = evaluate([example()], tokenizer, 3)
    assert asked == evaluate([example()], tokenizer, 999)[0]


def test_a_long_answer_is_dropped_whole_and_counted() -> None:
    tokenizer = TOKENIZERS["words"]
    kept, report = train([example(), example(gold="pot two two", number=1)], tokenizer, answer=3)
    assert [item.id for item in kept] == ["own/test/0"]
    assert (report.long_answers, report.dropped) == (1, 1)
    assert report.warning() == "Of 2 examples 1 with too long an answer were dropped."


def test_no_example_left_is_an_error() -> None:
    with pytest.raises(UserError, match=r"No training example is left: Of 1 examples .*=2 or"):
        train([example()], TOKENIZERS["words"], prompt=2)


def test_a_tokenizer_without_eos_cannot_teach() -> None:
    tokenizer = word_tokenizer(TEXTS)
    tokenizer.eos_token = None
    with pytest.raises(UserError, match="no end-of-sequence token"):
        train([example()], tokenizer)


@pytest.mark.parametrize("name", ["words", "slow"])
def test_a_closed_vocabulary_refuses_unknown_words_by_name(name: str) -> None:
    tokenizer = TOKENIZERS[name]
    known = [example(), without_context()]
    limits = {"max_prompt_tokens": 999, "closed_vocabulary": True}
    assert len(tokenize_prompts(known, tokenizer, **limits)[0]) == 2
    strange = without_context("which pot 12% Zürich ?")
    with pytest.raises(UserError, match=r"own/test/9 .*'12%', 'Zürich'.*backbone=gemma3_270m"):
        tokenize_prompts([*known, strange], tokenizer, **limits)
    with pytest.raises(UserError, match=r"own/test/0 .*'Zürich'"):
        tokenize_training([example(gold="pot Zürich")], tokenizer, max_answer_tokens=99, **limits)
    assert len(evaluate([strange], tokenizer, 999)[0]) == 1


def test_only_some_of_many_unknown_words_are_named() -> None:
    strange = without_context(" ".join(f"Ö{n}" for n in range(20)))
    with pytest.raises(UserError, match=r"'Ö7' and 12 more\."):
        tokenize_prompts([strange], TOKENIZERS["words"], max_prompt_tokens=99, closed_vocabulary=True)
