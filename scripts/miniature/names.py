"""Words of the synthetic world: nouns of words.yaml, and names built from its syllables."""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path

import yaml

_WORDS = yaml.safe_load(Path(__file__).with_name("words.yaml").read_text(encoding="utf-8"))

TRADES: list[str] = _WORDS["trades"]
THINGS: list[str] = _WORDS["things"]
BEASTS: list[str] = _WORDS["beasts"]
DISHES: list[str] = _WORDS["dishes"]
INSTRUMENTS: list[str] = _WORDS["instruments"]
HABITATS: list[str] = _WORDS["habitats"]
FOODS: list[str] = _WORDS["foods"]
COLOURS: list[str] = _WORDS["colours"]
STONES: list[str] = _WORDS["stones"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Names:
    """Proper names of the world.

    The first half of ``first`` are women's names, the second half men's. Last names are unique.
    """

    first: tuple[str, ...]
    last: tuple[str, ...]
    people: tuple[str, ...]
    towns: tuple[str, ...]
    rivers: tuple[str, ...]
    peaks: tuple[str, ...]
    lakes: tuple[str, ...]


def make_names(seed: int) -> Names:
    """Draw all proper names, reproducibly from the seed."""
    rng = random.Random(f"{seed}/names")
    first = _draw(rng, "first", 40)
    last = _draw(rng, "last", 70)
    return Names(
        first=first,
        last=last,
        people=tuple(f"{rng.choice(first)} {name}" for name in last),
        towns=_draw(rng, "town", 56),
        rivers=_draw(rng, "river", 24),
        peaks=_draw(rng, "peak", 16),
        lakes=_draw(rng, "lake", 10),
    )


def pronoun(first: str, names: Names) -> str:
    """Return "she" or "he" for a first name."""
    return "she" if names.first.index(first) < len(names.first) // 2 else "he"


def _draw(rng: random.Random, kind: str, count: int) -> tuple[str, ...]:
    """Draw ``count`` different names of an onset and an ending."""
    syllables = _WORDS["syllables"][kind]
    names = [onset + ending for onset in syllables["onset"] for ending in syllables["ending"]]
    return tuple(rng.sample(names, count))
