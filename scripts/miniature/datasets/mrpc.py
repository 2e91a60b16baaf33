"""Synthetic MRPC: whether two sentences describe the same event, in the format of GLUE."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from scripts.miniature.datasets.sampling import Row, disjoint, numbered
from scripts.miniature.names import THINGS, TRADES, Names
from scripts.miniature.sentences import ADJECTIVES, TIMES, TRANSITIVE, Verb
from scripts.miniature.world import SyntheticWorld

SIZES = {"mrpc/test": 300, "mrpc/train": 2000, "mrpc/validation": 100}
SAME = 0.66  # fraction of paraphrases, as in MRPC
HARD = 0.25
_PARTS = (("trade",), ("verb", "number", "thing"), ("town",), ("time",))  # of who, what, where and when
_CHANGED = ("trade", "verb", "number", "thing", "town")
SYNONYMS = {**ADJECTIVES, **{like: word for word, like in ADJECTIVES.items()}}


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

    The two sentences differ in the order of their parts, an adjective's synonym or both; hard pairs in voice or a
    verb's synonym. If they do not describe the same event, one part of the second is another one. The label decides
    nothing else, so that it cannot be read from one of the sentences.
    """
    while True:
        event = _event(rng, names)
        told = event
        reorder, synonym = rng.choice(((True, False), (False, True), (True, True)))
        if synonym:
            told = replace(told, adjective=SYNONYMS[told.adjective])
        voice = rng.choice(("passive", "like")) if rng.random() < hard else "active"
        label = int(rng.random() < same)
        if not label:
            told = _other(rng, told, names, _CHANGED)
        order = rng.randrange(3)
        first = _describe(event, order)
        other_order = (order + rng.randrange(1, 3)) % 3 if reorder else order
        second = _passive(told) if voice == "passive" else _describe(told, other_order, like=voice == "like")
        if rng.random() < 0.5:
            first, second = second, first
        yield {"sentence1": first, "sentence2": second, "label": label}


def short_rows(rng: random.Random, names: Names) -> Iterator[Row]:
    """Yield pairs of one to four parts of an event endlessly, half of them with one part that is another one."""
    while True:
        event = _event(rng, names)
        told = replace(event, adjective=SYNONYMS[event.adjective]) if rng.random() < 0.5 else event
        at = rng.sample(range(4), rng.choice((1, 1, 2, 2, 3, 4)))
        label = int(rng.random() < 0.5)
        if not label:
            told = _other(rng, told, names, [part for number in at for part in _PARTS[number]])
        first = " ".join(_pieces(event)[number] for number in at)
        if rng.random() < 0.5:
            rng.shuffle(at)
        second = " ".join(_pieces(told, like=rng.random() < 0.2)[number] for number in at)
        if rng.random() < 0.5:
            first, second = second, first
        yield {"sentence1": first, "sentence2": second, "label": label}


def splits(world: SyntheticWorld, seed: int) -> dict[str, list[Row]]:
    """Return the three labeled splits without duplicate pairs."""
    stream = rows(random.Random(f"{seed}/mrpc"), world.names)
    return numbered(disjoint(stream, SIZES, key=lambda row: (row["sentence1"], row["sentence2"])))


def _event(rng: random.Random, names: Names) -> _Event:
    return _Event(
        rng.choice(list(SYNONYMS)), rng.choice(TRADES), rng.choice(TRANSITIVE),
        rng.randrange(2, 30), rng.choice(THINGS), rng.choice(names.towns), rng.choice(TIMES),
    )  # fmt: skip


def _pieces(event: _Event, *, like: bool = False) -> tuple[str, str, str, str]:
    """Who, what, where and when; ``like`` takes the verb's synonym if it has one."""
    verb = event.verb.like if like and event.verb.like else event.verb.past
    return (
        f"the {event.adjective} {event.trade}", f"{verb} {event.number} {event.thing}s",
        f"in {event.town}", event.time,
    )  # fmt: skip


def _describe(event: _Event, order: int, *, like: bool = False) -> str:
    """Describe an event in the active voice; ``order`` selects the order of its parts."""
    who, what, where, time = _pieces(event, like=like)
    orders = ((who, what, where, time), (time, who, what, where), (where, who, what, time))
    text = " ".join((*orders[order], "."))
    return text[0].upper() + text[1:]


def _passive(event: _Event) -> str:
    what = f"{event.number} {event.thing}s were {event.verb.participle}"
    return f"{what} by the {event.adjective} {event.trade} in {event.town} {event.time} ."


def _other(rng: random.Random, event: _Event, names: Names, parts: Sequence[str]) -> _Event:
    """Return an event that differs in one of ``parts``."""
    part = rng.choice(parts)
    while True:
        value = getattr(_event(rng, names), part)
        if value != getattr(event, part):
            return replace(event, **{part: value})
