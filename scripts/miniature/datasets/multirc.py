"""Synthetic MultiRC: a passage, a question, and one row per candidate answer with its label."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from scripts.miniature.datasets.sampling import Row
from scripts.miniature.names import THINGS, Names
from scripts.miniature.sentences import TRANSITIVE, Verb
from scripts.miniature.world import SyntheticWorld

PASSAGES = {"multirc/validation": 20, "multirc/train": 90}
YES = 0.55
NEAR = 0.3  # fraction of wrong answers that belong to another person of the passage


@dataclass(frozen=True, slots=True)
class _Event:
    person: str
    verb: Verb
    thing: str
    town: str

    def text(self) -> str:
        return f"{self.person} {self.verb.past} a {self.thing} in {self.town}."


def passages(rng: random.Random, names: Names, *, events: int = 2) -> Iterator[list[Row]]:
    """Yield passages endlessly, with the rows of three yes/no questions and one "What" question."""
    while True:
        told = [
            _Event(*parts)
            for parts in zip(
                rng.sample(names.first, events), rng.sample(TRANSITIVE, events),
                rng.sample(THINGS, events), rng.sample(names.towns, events), strict=True,
            )
        ]  # fmt: skip
        yield _rows(rng, told, names)


def splits(world: SyntheticWorld, seed: int) -> dict[str, list[Row]]:
    """Return the validation and training splits, one row per answer, with the nested indices of the Hub."""
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


def _rows(rng: random.Random, events: list[_Event], names: Names) -> list[Row]:
    paragraph = " ".join(event.text() for event in events)
    asked = [_yes_no(rng, events, names) for _ in range(3)]
    asked.insert(rng.randrange(4), _what(rng, events))
    rows: list[Row] = []
    for number, (question, answers) in enumerate(dict(asked).items()):
        for text, label in answers:
            idx = {"question": number, "answer": len(rows)}
            rows.append(
                {"paragraph": paragraph, "question": question, "answer": text, "idx": idx,
                 "label": label}
            )  # fmt: skip
    return rows


def _yes_no(rng: random.Random, events: list[_Event], names: Names) -> tuple[str, list[tuple[str, int]]]:
    event = rng.choice(events)
    yes = rng.random() < YES
    if rng.random() < 0.6:
        thing = event.thing if yes else _wrong(rng, event.thing, THINGS, [d.thing for d in events])
        question = f"Did {event.person} {event.verb.base} a {thing}?"
    else:
        town = event.town if yes else _wrong(rng, event.town, names.towns, [d.town for d in events])
        question = f"Was {event.person} in {town}?"
    words = ("True", "False") if rng.random() < 0.1 else ("Yes", "No")
    answers = [(words[0], int(yes)), (words[1], int(not yes))]
    return question, answers if rng.random() < 0.5 else answers[::-1]


def _what(rng: random.Random, events: list[_Event]) -> tuple[str, list[tuple[str, int]]]:
    event = rng.choice(events)
    answers = [(f"a {one.thing}", int(one is event)) for one in rng.sample(events, len(events))]
    return f"What did {event.person} {event.verb.base}?", answers


def _wrong(rng: random.Random, right: str, known: Sequence[str], told: list[str]) -> str:
    """Return a wrong thing or town, sometimes one of the passage."""
    near = [one for one in told if one != right]
    if near and rng.random() < NEAR:
        return rng.choice(near)
    return rng.choice([one for one in known if one not in told])
