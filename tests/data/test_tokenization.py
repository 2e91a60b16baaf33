"""Prompts and answers as token ids: EOS, truncation of the context, closed vocabularies."""

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


def test_the_prompt_starts_with_bos_and_the_answer_ends_with_eos() -> None:
    tokenizer = TOKENIZERS["words"]
    ((item,), stats) = train([example()], tokenizer)
    assert item.id == "own/test/0"
    assert item.prompt_ids[0] == tokenizer.bos_token_id
    assert tokenizer.convert_ids_to_tokens(list(item.answer_ids)) == ["pot", "two", "</s>"]
    assert tokenizer.eos_token_id not in item.prompt_ids
    assert stats.warning() is None


def test_an_eos_that_the_tokenizer_adds_is_removed_from_the_prompt() -> None:
    plain = train([example()], TOKENIZERS["words"])[0]
    assert train([example()], TOKENIZERS["words, EOS added"])[0] == plain


def test_evaluation_has_the_same_prompts_and_no_answer() -> None:
    for tokenizer in TOKENIZERS.values():
        training, _ = train([example()], tokenizer)
        evaluation, _ = evaluate([example()], tokenizer, 999)
        assert evaluation[0].prompt_ids == training[0].prompt_ids
        assert evaluation[0].answer_ids == ()


@pytest.mark.parametrize("name", TOKENIZERS)
def test_the_context_is_truncated_from_the_left_by_as_few_words_as_possible(name: str) -> None:
    tokenizer = TOKENIZERS[name]
    words = PASSAGE.split()
    shortened = [example(" ".join(words[first:])) for first in range(len(words) + 1)]
    by_length = [item.prompt_ids for item in evaluate(shortened, tokenizer, 999)[0]]
    lengths = [len(ids) for ids in by_length]
    assert lengths == sorted(lengths, reverse=True)
    for limit in range(lengths[-1], lengths[0]):
        (item,), stats = evaluate([example()], tokenizer, limit)
        expected = next(ids for ids in by_length if len(ids) <= limit)
        assert item.prompt_ids == expected
        assert (stats.examples, stats.truncated, stats.too_long) == (1, 1, 0)
        assert train([example()], tokenizer, limit)[0][0].prompt_ids == expected
    assert stats.warning() == "Of 1 examples 1 had their context truncated from the left."


@pytest.mark.parametrize("name", TOKENIZERS)
def test_a_prompt_that_cannot_be_truncated_is_dropped_in_training_only(name: str) -> None:
    tokenizer = TOKENIZERS[name]
    short = example("")
    limit = len(evaluate([short], tokenizer, 999)[0][0].prompt_ids)
    examples = [short, without_context()]
    kept, stats = train(examples, tokenizer, limit)
    assert [item.id for item in kept] == ["own/test/0"]
    assert (stats.truncated, stats.too_long, stats.dropped) == (0, 1, 1)
    assert stats.warning() == "Of 2 examples 1 with a prompt too long to truncate were dropped."
    evaluated, stats = evaluate(examples, tokenizer, limit)
    assert evaluated[1] == evaluate(examples, tokenizer, 999)[0][1]
    assert stats.warning() == "Of 2 examples 1 with a prompt too long to truncate were kept in full."
    evaluated, _ = evaluate([example()], tokenizer, 3)
    assert evaluated == evaluate([example()], tokenizer, 999)[0]


@pytest.mark.parametrize("name", TOKENIZERS)
def test_truncation_on_the_right_cuts_prompt_and_answer(name: str) -> None:
    tokenizer = TOKENIZERS[name]
    (full,), _ = train([example()], tokenizer, 999, 999)
    prompt, answer = len(full.prompt_ids) - 3, len(full.answer_ids) - 1
    kept, stats = tokenize_training(
        [example()],
        tokenizer,
        max_prompt_tokens=prompt,
        max_answer_tokens=answer,
        closed_vocabulary=False,
        truncation="right",
    )
    assert kept[0].prompt_ids == full.prompt_ids[:prompt]
    assert kept[0].answer_ids == (*full.answer_ids[: answer - 1], tokenizer.eos_token_id)
    assert (stats.cut, stats.truncated, stats.dropped) == (1, 0, 0)
    assert stats.warning() == "Of 1 examples 1 had the end of their prompt or answer cut off."


def test_an_example_with_a_long_answer_is_dropped_and_counted() -> None:
    tokenizer = TOKENIZERS["words"]
    kept, stats = train([example(), example(gold="pot two two", number=1)], tokenizer, answer=3)
    assert [item.id for item in kept] == ["own/test/0"]
    assert (stats.long_answers, stats.dropped) == (1, 1)
    assert stats.warning() == "Of 2 examples 1 with too long an answer were dropped."


def test_no_example_left_is_a_user_error_with_the_limits() -> None:
    with pytest.raises(UserError, match=r"data\.max_prompt_tokens=2, .*no training example is left \(Of 1 examples"):
        train([example()], TOKENIZERS["words"], prompt=2)


def test_a_tokenizer_without_eos_is_a_user_error() -> None:
    tokenizer = word_tokenizer(TEXTS)
    tokenizer.eos_token = None
    with pytest.raises(UserError, match="no end-of-sequence token"):
        train([example()], tokenizer)


@pytest.mark.parametrize("name", ["words", "slow"])
def test_unknown_words_are_named_if_the_vocabulary_is_closed(name: str) -> None:
    tokenizer = TOKENIZERS[name]
    known = [example(), without_context()]
    limits = {"max_prompt_tokens": 999, "closed_vocabulary": True}
    assert len(tokenize_prompts(known, tokenizer, **limits)[0]) == 2
    unknown = without_context("which pot 12% Zürich ?")
    with pytest.raises(UserError, match=r"own/test/9: .*'12%', 'Zürich'.*backbone=gemma3_270m"):
        tokenize_prompts([*known, unknown], tokenizer, **limits)
    with pytest.raises(UserError, match=r"own/test/0: .*'Zürich'"):
        tokenize_training([example(gold="pot Zürich")], tokenizer, max_answer_tokens=99, **limits)
    assert len(evaluate([unknown], tokenizer, 999)[0]) == 1


def test_at_most_eight_unknown_words_are_named() -> None:
    unknown = without_context(" ".join(f"Ö{n}" for n in range(20)))
    with pytest.raises(UserError, match=r"'Ö7' and 12 more;"):
        tokenize_prompts([unknown], TOKENIZERS["words"], max_prompt_tokens=99, closed_vocabulary=True)


def test_prompt_and_answer_fit_into_the_positions_together() -> None:
    tokenizer = TOKENIZERS["words"]
    full = len(train([example()], tokenizer)[0][0].prompt_ids)
    positions = full + 3 - 2  # an answer has three tokens with EOS
    options = {"max_prompt_tokens": 999, "closed_vocabulary": False, "max_positions": positions}
    (item,), stats = tokenize_training([example()], tokenizer, max_answer_tokens=99, **options)
    assert len(item.prompt_ids) + len(item.answer_ids) == positions and stats.truncated == 1
    (item, *rest), stats = tokenize_training(
        [example(), without_context()], tokenizer, max_answer_tokens=99, **options
    )
    assert rest == [] and (stats.truncated, stats.too_long, stats.dropped) == (1, 1, 1)
    (item,), stats = tokenize_training(
        [without_context()], tokenizer, max_answer_tokens=99, truncation="right", **options
    )
    assert len(item.prompt_ids) == full - 2 and stats.cut == 1

    (item,), stats = tokenize_prompts([example()], tokenizer, max_new_tokens=3, **options)
    assert len(item.prompt_ids) + 3 == positions and stats.truncated == 1
    with pytest.raises(UserError, match=rf"own/test/9 .*data.max_prompt_tokens={full - 2}"):
        tokenize_prompts([without_context()], tokenizer, max_new_tokens=3, **options)
