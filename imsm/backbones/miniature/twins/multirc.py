"""MultiRC's twin: a passage, a question, and one row per candidate answer with its label."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

from imsm.backbones.miniature.grammar import TRANSITIVE, Verb
from imsm.backbones.miniature.names import THINGS, Names
from imsm.backbones.miniature.twins.draw import Row
from imsm.backbones.miniature.world import World

PASSAGES = {"multirc/validation": 20, "multirc/train": 90}
YES = 0.55


@dataclass(frozen=True, slots=True)
class _Deed:
    person: str
    verb: Verb
    thing: str
    town: str

    def told(self) -> str:
        return f"{self.person} {self.verb.past} a {self.thing} in {self.town}."


def passages(rng: random.Random, names: Names) -> Iterator[list[Row]]:
    """Endless passages of three deeds, each with the rows of three yes/no questions, one "What"."""
    while True:
        deeds = [
            _Deed(*parts)
            for parts in zip(
                rng.sample(names.first, 3), rng.sample(TRANSITIVE, 3), rng.sample(THINGS, 3),
                rng.sample(names.towns, 3), strict=True,
            )
        ]  # fmt: skip
        yield _rows(rng, " ".join(deed.told() for deed in deeds), deeds)


def splits(world: World, seed: int) -> dict[str, list[Row]]:
    """Validation and training split, one row per answer, in the hub's nested numbering."""
    stream = passages(random.Random(f"{seed}/multirc"), world.names)
    seen: set[str] = set()
    found: dict[str, list[Row]] = {}
    for name, size in PASSAGES.items():
        rows: list[Row] = []
        for paragraph in range(size):
            drawn = next(one for one in stream if one[0]["paragraph"] not in seen)
            seen.add(drawn[0]["paragraph"])
            rows += [{**row, "idx": {"paragraph": paragraph, **row["idx"]}} for row in drawn]
        found[name] = rows
    return found


def _rows(rng: random.Random, paragraph: str, deeds: list[_Deed]) -> list[Row]:
    asked = [_yes_no(rng, deeds) for _ in range(3)]
    asked.insert(rng.randrange(4), _what(rng, deeds))
    rows: list[Row] = []
    for number, (question, answers) in enumerate(dict(asked).items()):
        for text, label in answers:
            idx = {"question": number, "answer": len(rows)}
            rows.append(
                {"paragraph": paragraph, "question": question, "answer": text, "idx": idx,
                 "label": label}
            )  # fmt: skip
    return rows


def _yes_no(rng: random.Random, deeds: list[_Deed]) -> tuple[str, list[tuple[str, int]]]:
    deed, other = rng.sample(deeds, 2)
    yes = rng.random() < YES
    if rng.random() < 0.6:
        thing = deed.thing if yes else _another(rng, THINGS, deed.thing, other.thing)
        question = f"Did {deed.person} {deed.verb.base} a {thing}?"
    else:
        question = f"Was {deed.person} in {deed.town if yes else other.town}?"
    words = ("True", "False") if rng.random() < 0.1 else ("Yes", "No")
    answers = [(words[0], int(yes)), (words[1], int(not yes))]
    return question, answers if rng.random() < 0.5 else answers[::-1]


def _what(rng: random.Random, deeds: list[_Deed]) -> tuple[str, list[tuple[str, int]]]:
    deed = rng.choice(deeds)
    answers = [(f"a {one.thing}", int(one is deed)) for one in rng.sample(deeds, 3)]
    return f"What did {deed.person} {deed.verb.base}?", answers


def _another(rng: random.Random, things: list[str], right: str, near: str) -> str:
    """A wrong thing: most often one that another person of the passage had."""
    if rng.random() < 0.5:
        return near
    return rng.choice([thing for thing in things if thing != right])
