"""Replay: questions of another dataset that are learned beside the target's, never a test's own."""

from __future__ import annotations

import random
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from imsm.data.example import Example
from imsm.utils.errors import UserError

# As with a dataset's limit, arms and seeds share what is replayed.
REPLAY_SEED = "imsm.replay"
_WORD = re.compile(r"\w+")


@dataclass(frozen=True, slots=True, kw_only=True)
class Replay:
    """What is replayed, and what was left out of it."""

    examples: list[Example]
    """In their source's order."""
    wanted: int
    """How many were asked for; there may be fewer."""
    overlapping: int
    """Left out, because a test asks the same."""

    def warning(self) -> str | None:
        """What to tell the user; None if nothing was left out and all could be had."""
        parts = []
        if self.overlapping:
            parts.append(f"{self.overlapping} questions that a test asks were left out")
        if len(self.examples) < self.wanted:
            parts.append(f"only {len(self.examples)} of {self.wanted} could be had")
        return f"{'; '.join(parts)}." if parts else None


def sample_replay(
    candidates: Sequence[Example], *, apart_from: Iterable[Example], share: float, target: int
) -> Replay:
    """A fixed random choice of the candidates that no test asks.

    Two prompts ask the same if their words are the same, whatever their case, punctuation and
    blanks (FreebaseQA's prompt is WebQ's but for a blank and a question mark).

    Args:
        candidates: training examples of another dataset.
        apart_from: the examples of all tests that must stay unseen.
        share: how many to replay, as a share of the target's examples (at least one is).
        target: the number of the target's examples.

    Raises:
        UserError: no candidate is left.
    """
    asked = {_words(example.prompt) for example in apart_from}
    left = [example for example in candidates if _words(example.prompt) not in asked]
    if not left:
        raise UserError(
            f"peft.replay: each of the {len(candidates)} training questions is one of a test; "
            "choose another peft.replay.task"
        )
    wanted = max(1, round(share * target))
    order = list(range(len(left)))
    random.Random(REPLAY_SEED).shuffle(order)
    return Replay(
        examples=[left[index] for index in sorted(order[:wanted])],
        wanted=wanted,
        overlapping=len(candidates) - len(left),
    )


def _words(prompt: str) -> str:
    return " ".join(_WORD.findall(prompt.lower()))
