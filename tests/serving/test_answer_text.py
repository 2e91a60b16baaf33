"""The text of a stream equals the decoded answer, and ends at stop strings."""

from __future__ import annotations

import pytest
from tokenizers import ByteLevelBPETokenizer
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from imsm.serving.answer_text import AnswerText
from tests.models.siamese.tiny import tiny_tokenizer

TEXTS = ["Zoë  paid 3.50 € — twice!\n\n  So: 7 €", "日本語のテキスト 🧑‍🚀🚀 emoji", "don't , you 'll see . ok", ""]


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    """Byte-level BPE, as Llama 3's and SmolLM2's: most characters beyond ASCII span tokens here."""
    byte_level = ByteLevelBPETokenizer()
    byte_level.train_from_iterator(["The answer is 42. Question: another? one two"], vocab_size=300, min_frequency=1)
    return PreTrainedTokenizerFast(tokenizer_object=byte_level._tokenizer, clean_up_tokenization_spaces=False)


def pieces(tokenizer: PreTrainedTokenizerBase, text: str, stop: tuple[str, ...] = ()) -> tuple[list[str], AnswerText]:
    answer, shown = AnswerText(tokenizer, stop=stop), []
    for token in tokenizer(text, add_special_tokens=False)["input_ids"]:
        shown.append(answer.add(token))
        if answer.stopped:
            break
    return [*shown, answer.finish()], answer


@pytest.mark.parametrize("text", TEXTS)
def test_pieces_are_the_decoded_answer(tokenizer: PreTrainedTokenizerBase, text: str) -> None:
    shown, _ = pieces(tokenizer, text)
    assert "".join(shown) == text
    assert not any("�" in piece for piece in shown)


def test_a_stop_string_over_several_tokens_is_never_shown(tokenizer: PreTrainedTokenizerBase) -> None:
    text = "The answer is 42.\nQuestion: another?"
    shown, answer = pieces(tokenizer, text, stop=("\nQuestion:", "never"))
    assert "".join(shown) == "The answer is 42." and answer.stopped
    shown, answer = pieces(tokenizer, "one\nQues two", stop=("\nQuestion:",))
    assert "".join(shown) == "one\nQues two" and not answer.stopped
    shown, answer = pieces(tokenizer, "one\nQues", stop=("\nQuestion:",))
    assert shown[-1] == "\nQues" and "".join(shown) == "one\nQues"


def test_an_incomplete_character_is_shown_at_the_end(tokenizer: PreTrainedTokenizerBase) -> None:
    answer = AnswerText(tokenizer)
    first = tokenizer("🧑", add_special_tokens=False)["input_ids"][0]
    assert answer.add(first) == ""
    assert answer.finish() == tokenizer.decode([first])


def test_words_keep_their_spaces() -> None:
    answer = AnswerText(tiny_tokenizer(), stop=["w9 w10"])
    assert [answer.add(token) for token in (5, 6, 9, 10)] == ["w5", " w6", " ", ""] and answer.stopped
