"""Facts of the synthetic world, which the miniature learns and fine-tuning can make it forget."""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path

import yaml

from scripts.miniature import names as words
from scripts.miniature.names import Names, make_names

SEED = 2024


@dataclass(frozen=True, slots=True, kw_only=True)
class Relation:
    """A kind of fact with its statements and questions; see relations.yaml."""

    name: str
    subjects: str  # a key of _entities()
    objects: str
    told: tuple[str, ...]
    webq: tuple[str, ...]
    freebase: tuple[str, ...]
    many: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Fact:
    """The answers of one relation for one subject; each of them is correct."""

    relation: Relation
    subject: str
    answers: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class SyntheticWorld:
    """Names and facts in a fixed order."""

    names: Names
    facts: tuple[Fact, ...]


def load_relations() -> tuple[Relation, ...]:
    """Load relations.yaml."""
    file = Path(__file__).with_name("relations.yaml")
    relations = yaml.safe_load(file.read_text(encoding="utf-8"))
    return tuple(
        Relation(
            name=name,
            subjects=relation["subjects"],
            objects=relation["objects"],
            told=tuple(relation["told"]),
            webq=tuple(relation["webq"]),
            freebase=tuple(relation["freebase"]),
            many=relation.get("many", False),
        )
        for name, relation in relations.items()
    )


def make_world(seed: int = SEED) -> SyntheticWorld:
    """Draw names, and answers for every relation and subject; about 840 facts."""
    names = make_names(seed)
    entities = _entities(names)
    facts = []
    for relation in load_relations():
        rng = random.Random(f"{seed}/facts/{relation.name}")
        for subject in entities[relation.subjects]:
            others = [other for other in entities[relation.objects] if other != subject]
            count = rng.choice((1, 2, 2, 3)) if relation.many else 1
            answers = tuple(rng.sample(others, count))
            facts.append(Fact(relation=relation, subject=subject, answers=answers))
    return SyntheticWorld(names=names, facts=tuple(facts))


def join_words(parts: tuple[str, ...]) -> str:
    """Join words: "a", "a and b", "a, b and c"."""
    return parts[0] if len(parts) == 1 else ", ".join(parts[:-1]) + " and " + parts[-1]


def _entities(names: Names) -> dict[str, tuple[str, ...]]:
    """Return subjects and objects by their key in relations.yaml."""
    return {
        "people": names.people, "towns": names.towns, "rivers": names.rivers,
        "peaks": names.peaks, "lakes": names.lakes,
        "beasts": tuple(words.BEASTS), "dishes": tuple(words.DISHES),
        "trades": tuple(words.TRADES), "instruments": tuple(words.INSTRUMENTS),
        "habitats": tuple(words.HABITATS), "foods": tuple(words.FOODS),
        "colours": tuple(words.COLOURS), "stones": tuple(words.STONES),
        "goods": tuple(f"{thing}s" for thing in words.THINGS),
    }  # fmt: skip
