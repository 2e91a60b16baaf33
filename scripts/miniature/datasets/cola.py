"""CoLA's twin: is a sentence sound? GLUE's columns; the hub's unlabelled test split is left out."""

from __future__ import annotations

import random
from collections.abc import Iterator

from scripts.miniature.datasets.sampling import Row, disjoint, numbered
from scripts.miniature.names import Names
from scripts.miniature.sentences import broken, sentence
from scripts.miniature.world import World

SIZES = {"cola/validation": 300, "cola/train": 2000}
SOUND = 0.65  # CoLA's own share is 0.70


def rows(rng: random.Random, names: Names, *, faults: int | None = None) -> Iterator[Row]:
    """Endless judged sentences; `faults` keeps to the first few kinds of fault."""
    while True:
        if rng.random() < SOUND:
            yield {"sentence": sentence(rng, names), "label": 1}
        else:
            yield {"sentence": broken(rng, names, only=faults), "label": 0}


def splits(world: World, seed: int) -> dict[str, list[Row]]:
    """Training and validation split; no sentence occurs twice."""
    stream = rows(random.Random(f"{seed}/cola"), world.names)
    return numbered(disjoint(stream, SIZES, key=lambda row: row["sentence"]))
