"""Text normalization: the words that metrics compare."""

import re
import string

ARTICLES = frozenset({"a", "an", "the"})
_DELETE_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLES = re.compile(r"\b(a|an|the)\b")
# 1,234 must stay one number where punctuation separates words.
_THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")
# Punctuation, except a point between digits: without it 1.5 would equal 15.
_PUNCTUATION = re.compile(rf"(?!(?<=\d)\.(?=\d))[{re.escape(string.punctuation)}]")
# In a regular expression, an underscore belongs to a word.
_NOT_A_WORD = re.compile(r"(?!(?<=\d)\.(?=\d))[\W_]")


def normalize_paper_code(text: str) -> str:
    """Normalize as the paper's code: "1.5" becomes "15", "A" becomes the empty string."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_DELETE_PUNCTUATION)).split())


def squad_tokens(text: str) -> list[str]:
    """Return the words that SQuAD's official script compares (Rajpurkar et al. 2016).

    Lower case, without ASCII punctuation and articles. Two differences keep unequal answers distinct: a
    decimal point is kept (SQuAD turns 1.5 into 15), and so is a text of nothing but articles (for SQuAD
    the answer "A" equals no answer).
    """
    words = tokens_joined(text)
    return [word for word in words if word not in ARTICLES] or words


def tokens_joined(text: str) -> list[str]:
    """Return all lower-case words, articles included; punctuation is deleted: "U.S." is us."""
    return _PUNCTUATION.sub("", text.lower()).split()


def tokens_split(text: str) -> list[str]:
    """Return all lower-case words, articles included; punctuation separates: "Arvel's" is arvel s."""
    return _NOT_A_WORD.sub(" ", _THOUSANDS.sub("", text.lower())).split()
