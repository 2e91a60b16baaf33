"""Synthetic ROPES: a rule (background), a situation, and a question about the two people in it."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from scripts.miniature.datasets.sampling import Row, disjoint
from scripts.miniature.names import Names
from scripts.miniature.world import SyntheticWorld

SIZES = {"plain_text/validation": 300, "plain_text/train": 2000}


@dataclass(frozen=True, slots=True)
class Rule:
    """More of the cause makes the thing `up`, less of it makes it `down`."""

    thing: str
    verb: str
    cause: str
    up: str
    down: str


RULES = (
    Rule("plant", "gets", "water", "taller", "shorter"),
    Rule("lamp", "gets", "oil", "brighter", "darker"),
    Rule("wagon", "holds", "stone", "slower", "faster"),
    Rule("loaf", "holds", "salt", "harder", "softer"),
    Rule("room", "gets", "light", "warmer", "colder"),
    Rule("rope", "holds", "wax", "stronger", "weaker"),
    Rule("blanket", "holds", "wool", "thicker", "thinner"),
    Rule("drum", "holds", "clay", "deeper", "higher"),
)


def rows(rng: random.Random, names: Names, *, rules: Sequence[Rule] = RULES) -> Iterator[Row]:
    """Yield situations endlessly about one of ``rules``."""
    while True:
        rule = rng.choice(rules)
        one, two = rng.sample(names.first, 2)
        more = rng.random() < 0.5
        word = "more" if more else "less"
        asks_down = rng.random() < 0.5
        yield {
            "background": _background(rng, rule),
            "situation": f"{one} and {two} each have a {rule.thing}. The {rule.thing} of {one} "
            f"{rule.verb} {word} {rule.cause} than the {rule.thing} of {two}. ",
            "question": f"Whose {rule.thing} is {rule.down if asks_down else rule.up}?",
            "answers": {"text": [one if more != asks_down else two]},
        }


def splits(world: SyntheticWorld, seed: int) -> dict[str, list[Row]]:
    """Return the training and validation splits without duplicates."""
    stream = rows(random.Random(f"{seed}/ropes"), world.names)
    found = disjoint(stream, SIZES, key=lambda row: (row["situation"], row["question"]))
    return {
        name: [{"id": str(10**9 + 10**5 * number + index), **row} for index, row in enumerate(part)]
        for number, (name, part) in enumerate(found.items())
    }


def _background(rng: random.Random, rule: Rule) -> str:
    parts = [
        f"A {rule.thing} that {rule.verb} more {rule.cause} is {rule.up}.",
        f"A {rule.thing} that {rule.verb} less {rule.cause} is {rule.down}.",
    ]
    rng.shuffle(parts)
    return " ".join(parts)
