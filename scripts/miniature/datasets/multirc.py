"""MultiRC's twin: a passage, a question, and one row per candidate answer with its label."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from scripts.miniature.datasets.sampling import Row
from scripts.miniature.names import THINGS, Names
from scripts.miniature.sentences import TRANSITIVE, Verb
from scripts.miniature.world import World

PASSAGES = {"multirc/validation": 20, "multirc/train": 90}
YES = 0.55
NEAR = 0.3  # share of the wrong things and towns that another person of the passage had


@dataclass(frozen=True, slots=True)
class _Deed:
    person: str
    verb: Verb
    thing: str
    town: str

    def told(self) -> str:
        return f"{self.person} {self.verb.past} a {self.thing} in {self.town}."


def passages(rng: random.Random, names: Names, *, deeds: int = 3) -> Iterator[list[Row]]:
    """Endless passages of so many deeds, with the rows of three yes/no questions and one "What"."""
    while True:
        told = [
            _Deed(*parts)
            for parts in zip(
                rng.sample(names.first, deeds), rng.sample(TRANSITIVE, deeds),
                rng.sample(THINGS, deeds), rng.sample(names.towns, deeds), strict=True,
            )
        ]  # fmt: skip
        yield _rows(rng, told, names)


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


def _rows(rng: random.Random, deeds: list[_Deed], names: Names) -> list[Row]:
    paragraph = " ".join(deed.told() for deed in deeds)
    asked = [_yes_no(rng, deeds, names) for _ in range(3)]
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


def _yes_no(rng: random.Random, deeds: list[_Deed], names: Names) -> tuple[str, list[tuple[str, int]]]:
    deed = rng.choice(deeds)
    yes = rng.random() < YES
    if rng.random() < 0.6:
        thing = deed.thing if yes else _wrong(rng, deed.thing, THINGS, [d.thing for d in deeds])
        question = f"Did {deed.person} {deed.verb.base} a {thing}?"
    else:
        town = deed.town if yes else _wrong(rng, deed.town, names.towns, [d.town for d in deeds])
        question = f"Was {deed.person} in {town}?"
    words = ("True", "False") if rng.random() < 0.1 else ("Yes", "No")
    answers = [(words[0], int(yes)), (words[1], int(not yes))]
    return question, answers if rng.random() < 0.5 else answers[::-1]


def _what(rng: random.Random, deeds: list[_Deed]) -> tuple[str, list[tuple[str, int]]]:
    deed = rng.choice(deeds)
    answers = [(f"a {one.thing}", int(one is deed)) for one in rng.sample(deeds, len(deeds))]
    return f"What did {deed.person} {deed.verb.base}?", answers


def _wrong(rng: random.Random, right: str, known: Sequence[str], told: list[str]) -> str:
    """A wrong thing or town: sometimes one of the passage, else one that is not in it."""
    near = [one for one in told if one != right]
    if near and rng.random() < NEAR:
        return rng.choice(near)
    return rng.choice([one for one in known if one not in told])
