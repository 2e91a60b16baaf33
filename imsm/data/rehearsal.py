"""Texts for rehearsal: where they are cut, and what they have in common with a test.

A text is cut at a random place: what stands before the cut is the query (`prompt_ids`), and the positions after it
count in the loss (`answer_ids`).
"""

import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile

from imsm.data.replay import words_of
from imsm.data.tokenization import TokenizedExample

GRAM = 8
"""Words in a row that a text may not share with a test's prompt."""
_MIN_FORM_WORDS = 3
"""With fewer fixed words a text cannot be recognized."""
_Words = tuple[str, ...]


def cut_text(
    prompt_ids: Sequence[int], text_ids: Sequence[int], *, index: int, seed: int, from_bos: bool
) -> TokenizedExample | None:
    """Cut the text ``text_ids`` after ``prompt_ids`` at a random place; None if it is too short.

    The prompt is always part of the query. With ``from_bos`` the query also has at least one token of the text.
    The place depends on ``seed`` and ``index``, the number of the text.
    """
    first = 1 if from_bos else 0
    if len(text_ids) <= first:
        return None
    place = random.Random(f"imsm.rehearsal_cut/{seed}/{index}").randrange(first, len(text_ids))
    return TokenizedExample(
        id=f"rehearsal/{index}",
        prompt_ids=(*prompt_ids, *text_ids[:place]),
        answer_ids=tuple(text_ids[place:]),
        # LoRAMoE's type of world knowledge, as of replayed questions
        task_type=1,
    )


@dataclass(frozen=True)
class PromptWords:
    """Words of a test's prompts, in lower case and without punctuation.

    Args:
        before, after: its form: the words that all prompts begin and end with. Empty if all prompts are equal.
        grams: sequences of `GRAM` words of the prompts without their form. A prompt whose own part is shorter has the
            sequences that contain all of this part and words of the form next to it.
    """

    before: _Words
    after: _Words
    grams: frozenset[_Words]

    def shares_gram(self, words: _Words) -> bool:
        """Return whether a text has eight words in a row with a prompt in common, other than those of the form."""
        return any(not self.grams.isdisjoint(_grams(words, length)) for length in {len(gram) for gram in self.grams})

    def has_form(self, words: _Words) -> bool | None:
        """Return whether a text has the words of the form: first those before, later those after the prompt's own.

        None if the test's prompts have fewer than three such words.
        """
        if len(self.before) + len(self.after) < _MIN_FORM_WORDS:
            return None
        start = _find(words, self.before, 0)
        return start is not None and _find(words, self.after, start + len(self.before)) is not None


def prompt_words(prompts: Iterable[str]) -> PromptWords:
    """Split the prompts of a test into their form and their own words; see `PromptWords`."""
    rows = sorted({tuple(words_of(prompt).split()) for prompt in prompts})
    if not rows:
        return PromptWords((), (), frozenset())
    before = _common_start(rows)
    rests = [row[len(before) :] for row in rows]
    after = _common_start([rest[::-1] for rest in rests])[::-1]
    grams: set[_Words] = set()
    for row in rows:
        start, end = len(before), len(row) - len(after)
        if end - start >= GRAM:
            grams |= _grams(row[start:end], GRAM)
        # a prompt may consist of the form only
        elif end > start:
            starts = range(max(0, end - GRAM), max(0, min(start, len(row) - GRAM)) + 1)
            grams |= {row[each : each + GRAM] for each in starts}
    return PromptWords(before, after, frozenset(grams))


@dataclass(frozen=True, kw_only=True)
class TextCheck:
    """Which texts may be used, and how many have each test's form.

    Args:
        kept: numbers of the texts that share no `GRAM` words with a test.
        dropped: number of the others.
        forms: kept texts with the form of each test; None if its prompts have no form (`PromptWords.has_form`).
    """

    kept: list[int]
    dropped: int
    forms: dict[str, int | None]

    def warning(self) -> str | None:
        """Return a warning, or None if no text was dropped."""
        if not self.dropped:
            return None
        return f"dropped {self.dropped} texts that share {GRAM} words in a row with a test's prompt."


def check_texts(texts: Sequence[str], tests: Mapping[str, PromptWords]) -> TextCheck:
    """Compare texts with the prompts of tests by name."""
    words = [tuple(words_of(text).split()) for text in texts]
    kept = [i for i, each in enumerate(words) if not any(test.shares_gram(each) for test in tests.values())]
    forms: dict[str, int | None] = {}
    for name, test in tests.items():
        found = [test.has_form(words[index]) for index in kept]
        forms[name] = None if test.has_form(()) is None else sum(map(bool, found))
    return TextCheck(kept=kept, dropped=len(texts) - len(kept), forms=forms)


def _common_start(rows: Sequence[_Words]) -> _Words:
    """Return the words that several rows begin with; none of a single row."""
    if len(rows) < 2:
        return ()
    # the first row may be shorter than the others
    return tuple(column[0] for column in takewhile(lambda column: len(set(column)) == 1, zip(*rows, strict=False)))


def _grams(words: _Words, length: int) -> set[_Words]:
    return {words[start : start + length] for start in range(len(words) - length + 1)}


def _find(words: _Words, part: _Words, start: int) -> int | None:
    places = range(start, len(words) - len(part) + 1)
    return next((place for place in places if words[place : place + len(part)] == part), None)
