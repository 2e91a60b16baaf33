"""Text normalization: the words that metrics compare."""

import re
import string

import regex

ARTICLES = frozenset({"a", "an", "the"})
_DELETE_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLES = re.compile(r"\b(a|an|the)\b")
# 1,234 must stay one number where punctuation separates words.
_THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")
# Punctuation, except a point between digits: without it 1.5 would equal 15.
_PUNCTUATION = re.compile(rf"(?!(?<=\d)\.(?=\d))[{re.escape(string.punctuation)}]")
# Not \W: in `re` it includes the vowel signs of Devanagari and Thai.
_NOT_A_WORD = regex.compile(r"(?!(?<=\d)\.(?=\d))[^\p{L}\p{M}\p{N}]")
# Letters, with their marks, of scripts that write no spaces between words.
_UNSPACED = regex.compile(
    r"(?:(?=\p{L})[\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}]\p{M}*|[々〆ー])"
)


def normalize_paper_code(text: str) -> str:
    """Normalize as the paper's code: "1.5" becomes "15", "A" becomes the empty string."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_DELETE_PUNCTUATION)).split())


def squad_tokens(text: str) -> list[str]:
    """Return the words that SQuAD's official script compares (Rajpurkar et al. 2016, 2018).

    Lower case, without ASCII punctuation and articles. Two differences keep unequal answers distinct: a
    decimal point is kept (SQuAD turns 1.5 into 15), and so is a text of nothing but articles (for SQuAD
    the answer "A" equals no answer).
    """
    joined = _PUNCTUATION.sub("", text.lower())
    return _ARTICLES.sub(" ", joined).split() or joined.split()


def separate_unspaced(text: str) -> str:
    """Put spaces around each letter of a script without spaces: "東京です" becomes "東 京 で す"."""
    return text if text.isascii() else str(_UNSPACED.sub(r" \g<0> ", text))


def tokens_joined(text: str) -> list[str]:
    """Return all lower-case words, articles included; punctuation is deleted: "U.S." is us."""
    return _PUNCTUATION.sub("", text.lower()).split()


def tokens_split(text: str) -> list[str]:
    """Return all lower-case words, articles included; punctuation separates: "Arvel's" is arvel s."""
    return str(_NOT_A_WORD.sub(" ", _THOUSANDS.sub("", text.lower()))).split()
