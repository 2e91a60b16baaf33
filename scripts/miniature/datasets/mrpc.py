"""Synthetic MRPC: whether two sentences describe the same event, in the format of GLUE."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, replace

from scripts.miniature.datasets.sampling import Row, disjoint, numbered
from scripts.miniature.names import THINGS, TRADES, Names
from scripts.miniature.sentences import ADJECTIVES, TIMES, TRANSITIVE, Verb
from scripts.miniature.world import SyntheticWorld

SIZES = {"mrpc/test": 300, "mrpc/train": 2000, "mrpc/validation": 100}
SAME = 0.66  # fraction of paraphrases, as in MRPC
HARD = 0.25


@dataclass(frozen=True, slots=True)
class _Event:
    adjective: str
    trade: str
    verb: Verb
    number: int
    thing: str
    town: str
    time: str


def rows(rng: random.Random, names: Names, *, hard: float = HARD, same: float = SAME) -> Iterator[Row]:
    """Yield pairs endlessly.

    Hard pairs differ in voice, a synonym of the verb, a number, or a "not".
    """
    while True:
        event = _event(rng, names)
        is_hard = rng.random() < hard
        if rng.random() < same:
            first, second = _describe(rng, event), _paraphrase(rng, event, is_hard)
            label = 1
        else:
            first, second = _describe(rng, event), _other(rng, event, names, is_hard)
            label = 0
        if rng.random() < 0.5:
            first, second = second, first
        if first != second:
            yield {"sentence1": first, "sentence2": second, "label": label}


def splits(world: SyntheticWorld, seed: int) -> dict[str, list[Row]]:
    """Return the three labeled splits without duplicate pairs."""
    stream = rows(random.Random(f"{seed}/mrpc"), world.names)
    return numbered(disjoint(stream, SIZES, key=lambda row: (row["sentence1"], row["sentence2"])))


def _event(rng: random.Random, names: Names) -> _Event:
    return _Event(
        rng.choice(list(ADJECTIVES)), rng.choice(TRADES), rng.choice(TRANSITIVE),
        rng.randrange(2, 30), rng.choice(THINGS), rng.choice(names.towns), rng.choice(TIMES),
    )  # fmt: skip


def _describe(rng: random.Random, event: _Event, *, past: str = "", order: int | None = None) -> str:
    """Describe an event in the active voice; ``order`` selects the order of its parts."""
    who = f"the {event.adjective} {event.trade}"
    what = f"{past or event.verb.past} {event.number} {event.thing}s"
    where = f"in {event.town}"
    text = (
        f"{who} {what} {where} {event.time} .",
        f"{event.time} {who} {what} {where} .",
        f"{where} {who} {what} {event.time} .",
    )[rng.randrange(3) if order is None else order]
    return text[0].upper() + text[1:]


def _paraphrase(rng: random.Random, event: _Event, hard: bool) -> str:
    if not hard:
        other = ADJECTIVES[event.adjective]
        return _describe(rng, replace(event, adjective=other) if rng.random() < 0.5 else event)
    if event.verb.like and rng.random() < 0.4:
        return _describe(rng, event, past=event.verb.like)
    who = f"the {event.adjective} {event.trade}"
    text = f"{event.number} {event.thing}s were {event.verb.participle} by {who}"
    return f"{text} in {event.town} {event.time} ."


def _other(rng: random.Random, event: _Event, names: Names, hard: bool) -> str:
    """Describe an event that differs in one part."""
    if hard and rng.random() < 0.4:
        return _describe(rng, event, past=f"did not {event.verb.base}")
    if hard:
        return _describe(rng, replace(event, number=event.number % 29 + 1))
    fresh = _event(rng, names)
    part = rng.choice(("trade", "thing", "town", "verb"))
    if getattr(fresh, part) == getattr(event, part):
        return _other(rng, event, names, hard)
    return _describe(rng, replace(event, **{part: getattr(fresh, part)}))
