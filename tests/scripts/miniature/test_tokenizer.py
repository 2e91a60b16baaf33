"""The tokenizer of the miniature: small, closed vocabulary, exact decoding."""

from __future__ import annotations

import pytest

from imsm.models.backbones.loading import load_tokenizer
from scripts.miniature.tokenizer import build_tokenizer, vocabulary
from tests.scripts.miniature.shipped import TESTED, TRAINED, examples_of


@pytest.mark.parametrize("prompts", ["paper", "corrected"])
@pytest.mark.parametrize("task", TESTED)
def test_decoding_restores_every_prompt_and_answer(task: str, prompts: str) -> None:
    tokenizer = load_tokenizer(name_or_path="imsm:miniature")
    examples = examples_of(task, "test", prompts=prompts)
    if task in TRAINED:
        examples += examples_of(task, "train", prompts=prompts)
    texts = [one.prompt for one in examples] + [gold for one in examples for gold in one.golds]
    ids = tokenizer(texts)["input_ids"]
    assert not any(tokenizer.unk_token_id in one for one in ids)
    assert tokenizer.batch_decode(ids, skip_special_tokens=True) == texts


@pytest.mark.parametrize("text", ["Ouput:", " Given", "a    b", "\n\nyes", "{answer}.", "7 + 5 = 12"])
def test_decoding_restores_spaces_lines_and_marks(text: str) -> None:
    tokenizer = build_tokenizer(vocabulary([text]))
    assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False)) == text


def test_an_answer_is_tokenized_as_within_a_text() -> None:
    tokenizer = load_tokenizer(name_or_path="imsm:miniature")
    alone = tokenizer("yes", add_special_tokens=False)["input_ids"]
    assert tokenizer("The answer is yes", add_special_tokens=False)["input_ids"][-1:] == alone
    assert tokenizer("12", add_special_tokens=False)["input_ids"] == [tokenizer.convert_tokens_to_ids("▁12")]


def test_vocabulary_size_and_special_tokens() -> None:
    tokenizer = load_tokenizer(name_or_path="imsm:miniature")
    assert len(tokenizer) <= 1300
    special = {tokenizer.pad_token, tokenizer.bos_token, tokenizer.eos_token, tokenizer.unk_token}
    assert len(special) == 4
    assert tokenizer("yes")["input_ids"][0] == tokenizer.bos_token_id


def test_other_words_are_unknown() -> None:
    tokenizer = load_tokenizer(name_or_path="imsm:miniature")
    assert tokenizer.unk_token_id in tokenizer("Who wrote Hamlet?")["input_ids"]
