"""The fast search for stop patterns finds what a search of every row at every token finds."""

from __future__ import annotations

import random
import re

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from imsm.evaluation.stop_pattern import WINDOW, ends_in_line_break, finished_finder

EOS = 0
LINE, ANSWER = r"\S[^\n]*\n", r"(?i)the answer is[^\n]*\d[^\n]*\n"
WORDS = ["the", "The answer is", " is", " 5", "7", "x", " The", "\n", "\n\n", " \n", "a\n", "é", " €", "日", "本\n"]


def byte_level() -> PreTrainedTokenizerFast:
    """A tokenizer like GPT-2's and Llama 3's: any byte is a token, so that a character may need several."""
    letters = pre_tokenizers.ByteLevel.alphabet()
    split = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    words = ["".join(piece for piece, _ in split.pre_tokenize_str(word)) for word in WORDS]
    names = dict.fromkeys(["<eos>", *sorted(letters), *words])
    inner = Tokenizer(models.WordLevel({name: i for i, name in enumerate(names)}, unk_token="<eos>"))
    inner.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<eos>")


def byte_fallback() -> PreTrainedTokenizerFast:
    """A tokenizer like Llama 2's and Gemma's: each byte is a token, and a leading space is removed."""
    names = ["<eos>", *(f"<0x{byte:02X}>" for byte in range(256)), *(word.replace(" ", "▁") for word in WORDS)]
    inner = Tokenizer(models.WordLevel({name: i for i, name in enumerate(names)}, unk_token="<eos>"))
    inner.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<eos>")


def end_by_search(row: list[int], tokenizer: PreTrainedTokenizerFast, stop: str) -> int | None:
    """Return after how many tokens a search at every token ends the row."""
    for length in range(1, len(row) + 1):
        text = tokenizer.decode(row[max(0, length - WINDOW) : length], skip_special_tokens=True)
        if row[length - 1] == EOS or re.search(stop, text):
            return length
    return None


def random_row(tokenizer: PreTrainedTokenizerFast, generator: random.Random) -> list[int]:
    """Return tokens in which line breaks and parts of characters are frequent, and stops are not."""
    size = len(tokenizer)
    texts = [tokenizer.decode([token]) for token in range(size)]
    partial = [token for token in range(1, size) if "\ufffd" in texts[token]]
    breaks = [token for token in range(1, size) if "\n" in texts[token]]
    plain = {word.strip() for word in WORDS if "\n" not in word}
    words = [token for token in range(1, size) if texts[token].strip() in plain]
    rate = generator.choice([0.0, 0.01, 0.1])
    return [
        generator.choice(breaks if generator.random() < rate else partial if generator.random() < 0.3 else words)
        for _ in range(120)
    ]


@pytest.mark.parametrize("make", [byte_level, byte_fallback])
@pytest.mark.parametrize("stop", [LINE, ANSWER, r"\n\n", "is\n", r"5|7", r"x(?=\n)", r"^\s*the"])
def test_rows_end_where_a_search_at_every_token_ends_them(make, stop: str) -> None:
    tokenizer, generator = make(), random.Random(stop)
    rows = {key: random_row(tokenizer, generator) for key in range(20)}
    expected = {key: end_by_search(row, tokenizer, stop) for key, row in rows.items()}
    find_finished = finished_finder(tokenizer, eos=[EOS], stop=stop)
    found: dict[int, int | None] = dict.fromkeys(rows)
    for length in range(1, 121):
        active = {key: row[:length] for key, row in rows.items() if found[key] is None}
        found |= dict.fromkeys(find_finished(active), length)
    assert found == expected
    assert len(set(expected.values())) > 1  # there is something to find


def test_a_line_break_behind_a_broken_character_counts_when_that_leaves_the_window() -> None:
    tokenizer = byte_fallback()
    word = tokenizer.convert_tokens_to_ids("x")
    row = [1 + 0xE2, 1 + ord("A"), 1 + ord("\n"), *[word] * 80]
    assert "\n" not in tokenizer.decode(row[:4])
    find_finished = finished_finder(tokenizer, eos=[EOS], stop=LINE)
    ends = [length for length in range(1, len(row)) if find_finished({0: row[:length]})]
    assert ends[0] == end_by_search(row, tokenizer, LINE) == WINDOW + 1


@pytest.mark.parametrize(
    ("stop", "expected"),
    [
        (LINE, True),
        (ANSWER, True),
        ("\n", True),
        (r"a(?:b|c)\n", False),
        (r"\\n", False),  # a backslash and the letter n
        (r"\\\n", True),
        (r"\n$", False),
        (r"^\n", False),
        (r"(?m)a\n", False),
        (r"a(?<!b)\n", False),
        (r"a\n?", False),
        (r"\n\b", False),
    ],
)
def test_patterns_that_certainly_end_in_a_line_break(stop: str, expected: bool) -> None:
    assert ends_in_line_break(stop) is expected
