"""Synthetic GSM8K: arithmetic of one or two steps with `<<7+5=12>>` marks and a last line `#### 12`."""

from __future__ import annotations

import random
from collections.abc import Iterator

from scripts.miniature.datasets.sampling import Row, disjoint
from scripts.miniature.names import THINGS, Names, pronoun
from scripts.miniature.world import SyntheticWorld

SIZES = {"main/test": 300, "main/train": 2000}
LARGEST = 30  # largest number, including results
TWO_STEPS = 0.4


def rows(rng: random.Random, names: Names) -> Iterator[Row]:
    """Yield problems endlessly: more, fewer, more and then fewer, boxes of the same size."""
    while True:
        first, other = rng.sample(names.first, 2)
        kind = _two_steps if rng.random() < TWO_STEPS else rng.choice(_ONE_STEP)
        yield kind(rng, first, other, pronoun(first, names), rng.choice(THINGS) + "s")


def splits(world: SyntheticWorld, seed: int) -> dict[str, list[Row]]:
    """Return the training and test splits without duplicate questions."""
    return disjoint(rows(random.Random(f"{seed}/gsm8k"), world.names), SIZES, key=lambda row: row["question"])


def step(a: int, sign: str, b: int) -> tuple[str, int]:
    """Return a sum in the format of GSM8K, "7 + 5 = <<7+5=12>>12", and its result."""
    result = {"+": a + b, "-": a - b, "*": a * b}[sign]
    return f"{a} {sign} {b} = <<{a}{sign}{b}={result}>>{result}", result


def _more(rng: random.Random, first: str, other: str, she: str, things: str) -> Row:
    a = rng.randrange(2, LARGEST - 3)
    b = rng.randrange(2, LARGEST - a + 1)
    text, total = step(a, "+", b)
    return {
        "question": f"{first} has {a} {things}. Then {she} buys {b} more {things}. "
        f"How many {things} does {first} have now?",
        "answer": f"{first} has {text} {things}.\n#### {total}",
    }


def _fewer(rng: random.Random, first: str, other: str, she: str, things: str) -> Row:
    a = rng.randrange(5, LARGEST + 1)
    b = rng.randrange(2, a - 1)
    text, total = step(a, "-", b)
    return {
        "question": f"{first} has {a} {things}. Then {she} gives {b} {things} to {other}. "
        f"How many {things} does {first} have left?",
        "answer": f"{first} has {text} {things} left.\n#### {total}",
    }


def _boxes(rng: random.Random, first: str, other: str, she: str, things: str) -> Row:
    a = rng.randrange(2, 7)
    b = rng.randrange(2, min(9, LARGEST // a) + 1)
    text, total = step(a, "*", b)
    return {
        "question": f"{first} has {a} boxes. There are {b} {things} in each box. How many {things} does {first} have?",
        "answer": f"{first} has {text} {things}.\n#### {total}",
    }


def _two_steps(rng: random.Random, first: str, other: str, she: str, things: str) -> Row:
    a = rng.randrange(3, LARGEST - 4)
    b = rng.randrange(2, LARGEST - a + 1)
    text, middle = step(a, "+", b)
    c = rng.randrange(2, middle - 1)
    last, total = step(middle, "-", c)
    return {
        "question": f"{first} has {a} {things}. Then {she} buys {b} more {things} and gives {c} "
        f"{things} to {other}. How many {things} does {first} have left?",
        "answer": f"{first} has {text} {things}.\nThen {she} has {last} {things} left.\n#### {total}",
    }


_ONE_STEP = (_more, _fewer, _boxes)
