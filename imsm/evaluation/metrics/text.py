"""Texts as the words that metrics compare."""

from __future__ import annotations

import re
import string

_MARKS = str.maketrans("", "", string.punctuation)
_ARTICLES = re.compile(r"\b(a|an|the)\b")


def normalised(text: str) -> str:
    """Lower case, without marks and articles, single blanks: "1.5" is "15", "A" is nothing."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_MARKS)).split())


def says_yes(text: str) -> bool:
    """Whether "yes" stands anywhere in it, in "yesterday" too; all else counts as no."""
    return "yes" in normalised(text)


_THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")
# Punctuation, except a point between digits: without it 1.5 would equal 15.
_PUNCTUATION = re.compile(rf"(?!(?<=\d)\.(?=\d))[{re.escape(string.punctuation)}]")
_NOT_A_WORD = re.compile(r"(?!(?<=\d)\.(?=\d))[\W_]")
ARTICLES = frozenset({"a", "an", "the"})


def squad_tokens(text: str) -> list[str]:
    """The words that SQuAD's evaluation compares (Rajpurkar et al. 2016, official script).

    Lower case, ASCII punctuation deleted, articles dropped, split at blanks. Two differences keep
    unequal answers apart: a decimal point stays (SQuAD makes 15 of 1.5), and a text of nothing but
    articles keeps them (SQuAD makes the answer "A" equal to no answer).
    """
    words = _PUNCTUATION.sub("", text.lower()).split()
    return [word for word in words if word not in ARTICLES] or words


def tokens_joined(text: str) -> list[str]:
    """All words, articles too, lower case; punctuation deleted: "U.S." is us."""
    return _PUNCTUATION.sub("", text.lower()).split()


def tokens_split(text: str) -> list[str]:
    """All words, articles too, lower case; punctuation separates: "Arvel's" is arvel s."""
    return _NOT_A_WORD.sub(" ", _THOUSANDS.sub("", text.lower())).split()
