"""The facts of the invented world: what the miniature knows and fine-tuning can make it forget."""

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
    """One kind of fact, and how it is told and asked; relations.yaml explains the fields."""

    name: str
    subjects: str  # a key of _kinds()
    objects: str
    told: tuple[str, ...]
    webq: tuple[str, ...]
    freebase: tuple[str, ...]
    many: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Fact:
    """What one subject has under one relation; several answers are all right."""

    relation: Relation
    subject: str
    answers: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """Names and facts, in a fixed order."""

    names: Names
    facts: tuple[Fact, ...]


def load_relations() -> tuple[Relation, ...]:
    """All kinds of facts, as relations.yaml gives them."""
    file = Path(__file__).with_name("relations.yaml")
    found = yaml.safe_load(file.read_text(encoding="utf-8"))
    return tuple(
        Relation(
            name=name,
            subjects=one["subjects"],
            objects=one["objects"],
            told=tuple(one["told"]),
            webq=tuple(one["webq"]),
            freebase=tuple(one["freebase"]),
            many=one.get("many", False),
        )
        for name, one in found.items()
    )


def make_world(seed: int = SEED) -> World:
    """Draw the names and, for every relation and subject, what holds; about 840 facts."""
    names = make_names(seed)
    kinds = _kinds(names)
    facts = []
    for relation in load_relations():
        rng = random.Random(f"{seed}/facts/{relation.name}")
        for subject in kinds[relation.subjects]:
            others = [one for one in kinds[relation.objects] if one != subject]
            count = rng.choice((1, 2, 2, 3)) if relation.many else 1
            answers = tuple(rng.sample(others, count))
            facts.append(Fact(relation=relation, subject=subject, answers=answers))
    return World(names=names, facts=tuple(facts))


def join_words(parts: tuple[str, ...]) -> str:
    """Write a list as English does: "a", "a and b", "a, b and c"."""
    return parts[0] if len(parts) == 1 else ", ".join(parts[:-1]) + " and " + parts[-1]


def _kinds(names: Names) -> dict[str, tuple[str, ...]]:
    """All kinds of subjects and objects by their names in relations.yaml."""
    return {
        "people": names.people, "towns": names.towns, "rivers": names.rivers,
        "peaks": names.peaks, "lakes": names.lakes,
        "beasts": tuple(words.BEASTS), "dishes": tuple(words.DISHES),
        "trades": tuple(words.TRADES), "instruments": tuple(words.INSTRUMENTS),
        "habitats": tuple(words.HABITATS), "foods": tuple(words.FOODS),
        "colours": tuple(words.COLOURS), "stones": tuple(words.STONES),
        "goods": tuple(f"{thing}s" for thing in words.THINGS),
    }  # fmt: skip
