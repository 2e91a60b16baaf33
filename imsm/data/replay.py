"""Replay: training examples of another dataset, mixed into the target's; never a test question."""

import random
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from imsm.data.example import Example
from imsm.utils.errors import UserError

REPLAY_SEED = "imsm.replay"
"""Independent of the run's seed: all methods and seeds replay the same examples."""
_WORD = re.compile(r"\w+")


@dataclass(frozen=True, slots=True, kw_only=True)
class Replay:
    """Sampled examples in their source's order, the requested number, and counts for a warning.

    ``num_overlapping`` candidates were excluded because a test contains their question.
    """

    examples: list[Example]
    requested: int
    num_overlapping: int

    def warning(self) -> str | None:
        """Return a warning, or None if nothing was excluded and enough examples were available."""
        parts = []
        if self.num_overlapping:
            parts.append(f"excluded {self.num_overlapping} questions that are in a test")
        if len(self.examples) < self.requested:
            parts.append(f"only {len(self.examples)} of {self.requested} examples are available")
        return f"{'; '.join(parts)}." if parts else None


def sample_replay(
    candidates: Sequence[Example], *, excluded: Iterable[Example], ratio: float, num_target_examples: int, given: str
) -> Replay:
    """Sample candidates with a fixed seed, without questions of the excluded examples.

    Prompts with the same words are the same question, regardless of case, punctuation and
    whitespace. ``ratio`` is relative to ``num_target_examples``; at least one example is sampled. ``given`` is the
    option that names the dataset, for messages.

    Raises:
        UserError: All candidates are excluded.
    """
    # the prompts of FreebaseQA and WebQ differ only by a space and a question mark
    excluded_questions = {words_of(example.prompt) for example in excluded}
    allowed = [example for example in candidates if words_of(example.prompt) not in excluded_questions]
    if not allowed:
        raise UserError(f"{given}: all {len(candidates)} training questions are in a test; choose another dataset")
    requested = max(1, round(ratio * num_target_examples))
    # a prefix of one permutation: a smaller ratio replays a subset of a larger one's examples
    order = list(range(len(allowed)))
    random.Random(REPLAY_SEED).shuffle(order)
    return Replay(
        examples=[allowed[index] for index in sorted(order[:requested])],
        requested=requested,
        num_overlapping=len(candidates) - len(allowed),
    )


def words_of(prompt: str) -> str:
    """Return the words of a prompt, without case and punctuation; prompts with the same words are one question."""
    return " ".join(_WORD.findall(prompt.lower()))
