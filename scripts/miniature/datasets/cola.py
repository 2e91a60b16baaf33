"""Synthetic CoLA: grammaticality of sentences, in the columns of GLUE, without the unlabeled test split."""

from __future__ import annotations

import random
from collections.abc import Iterator

from scripts.miniature.datasets.sampling import Row, disjoint, numbered
from scripts.miniature.names import Names
from scripts.miniature.sentences import sentence, ungrammatical
from scripts.miniature.world import SyntheticWorld

SIZES = {"cola/validation": 300, "cola/train": 2000}
GRAMMATICAL = 0.65  # 0.70 in CoLA


def rows(rng: random.Random, names: Names, *, errors: int | None = None) -> Iterator[Row]:
    """Yield labeled sentences endlessly; ``errors`` restricts them to the first kinds of errors."""
    while True:
        if rng.random() < GRAMMATICAL:
            yield {"sentence": sentence(rng, names), "label": 1}
        else:
            yield {"sentence": ungrammatical(rng, names, only=errors), "label": 0}


def splits(world: SyntheticWorld, seed: int) -> dict[str, list[Row]]:
    """Return the training and validation splits without duplicates."""
    stream = rows(random.Random(f"{seed}/cola"), world.names)
    return numbered(disjoint(stream, SIZES, key=lambda row: row["sentence"]))
