"""Normalization against an independent implementation of SQuAD's script."""

from __future__ import annotations

import random
import re
import string

import pytest

from imsm.evaluation.metrics import exact_match, token_f1
from imsm.evaluation.metrics.text import normalize_paper_code, squad_tokens, tokens_joined, tokens_split


def squad_normal(text: str) -> str:
    """Lower, marks deleted, articles to a blank, blanks squeezed, one step after the other."""
    text = "".join(ch for ch in text.lower() if ch not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


def squad_f1(prediction: str, reference: str) -> float:
    left, right = squad_normal(prediction).split(), squad_normal(reference).split()
    rest, shared = list(right), 0
    for word in left:
        if word in rest:
            rest.remove(word)
            shared += 1
    if not left or not right:
        return float(left == right)
    if not shared:
        return 0.0
    precision, recall = shared / len(left), shared / len(right)
    return 2 * precision * recall / (precision + recall)


WORDS = [
    "The",
    "a",
    "an",
    "cat",
    "Cat's",
    "cat",
    "well-known",
    "U.S.",
    "2,125",
    "dog,",
    "(dog)",
    "é",
    "the–cat",
    "’a’",
]


@pytest.mark.parametrize("seed", range(200))
def test_exact_match_and_token_f1_equal_squads(seed: int) -> None:
    draw = random.Random(seed)

    def text() -> str:
        return " ".join([*draw.choices(WORDS, k=draw.randrange(4)), draw.choice(WORDS[3:])])

    prediction, references = text(), [text() for _ in range(draw.randrange(1, 4))]
    normal = [squad_normal(reference) for reference in references]
    assert exact_match.score(prediction, references) == float(squad_normal(prediction) in normal)
    assert token_f1.score(prediction, references) == pytest.approx(
        max(squad_f1(prediction, reference) for reference in references)
    )


def test_the_documented_differences_from_squads_script() -> None:
    assert squad_normal("1.5") == squad_normal("15") and exact_match.score("1.5", ["15"]) == 0
    assert token_f1.score("1.5", ["15"]) == 0 < squad_f1("1.5", "15")
    assert squad_normal("A") == squad_normal("the") == "" and exact_match.score("A", ["the"]) == 0
    assert token_f1.score("A", ["the"]) == 0 < squad_f1("A", "the")
    assert exact_match.score("!", ["?"]) == token_f1.score("", ["?"]) == squad_f1("!", "?") == 1
    assert token_f1.score("", ["cat"]) == squad_f1("", "cat") == 0


def test_each_normalization_by_example() -> None:
    text = "The U.S. spent 1,250.5 on Arvel's port"
    assert normalize_paper_code(text) == "us spent 12505 on arvels port"
    assert squad_tokens(text) == ["us", "spent", "1250.5", "on", "arvels", "port"]
    assert tokens_joined(text) == ["the", "us", "spent", "1250.5", "on", "arvels", "port"]
    assert tokens_split(text) == ["the", "u", "s", "spent", "1250.5", "on", "arvel", "s", "port"]
    assert squad_tokens("A") == ["a"] and normalize_paper_code("A") == ""
