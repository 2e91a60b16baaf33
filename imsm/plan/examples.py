"""How many examples a run meets and how long they are: counted, known, or not known."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from imsm.data.sources import DataSource, load_examples
from imsm.data.task import Role, Task
from imsm.errors import UserError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

CHARACTERS_A_TOKEN = 4
"""Of English text, roughly, in a vocabulary of 30 to 250 thousand."""


@dataclass(frozen=True, kw_only=True)
class LengthStats:
    """Of one split: number of examples (None: not known) and their lengths in tokens.

    ``mean`` is None where only the limits of the dataset's yaml are known.
    """

    examples: int | None
    mean: tuple[float, float] | None
    """Of prompt and answer."""
    longest: tuple[int, int]
    """Likewise; the answer with its end-of-text token."""
    source: str
    """How this is known, in words."""

    def limited(self, examples: int | None) -> LengthStats:
        """At most so many examples."""
        if examples is None or self.examples is None:
            return self
        kept = min(examples, self.examples)
        return LengthStats(examples=kept, mean=self.mean, longest=self.longest, source=self.source)


def known_lengths(facts: dict[str, Any], role: Role) -> LengthStats | None:
    """What a dataset's yaml says of a split; None if it says nothing."""
    split = facts.get(role)
    if split is None:
        return None
    (mean_prompt, longest_prompt), (mean_answer, longest_answer) = split["prompt"], split["answer"]
    return LengthStats(
        examples=split["examples"],
        mean=(mean_prompt, mean_answer),
        longest=(longest_prompt, longest_answer),
        source="known (the dataset's yaml)",
    )


def counted_lengths(
    task: Task, role: Role, *, source: DataSource, prompts: str, tokenizer: Path | None
) -> LengthStats | None:
    """Read a local split and measure it; None if it cannot be read without a library.

    Args:
        task: the dataset.
        role: which split.
        source: a mirror, a folder or the miniature.
        prompts: verbatim or corrected.
        tokenizer: a `tokenizer.json`; None: tokens are taken from characters.
    """
    try:
        examples = load_examples(
            task, role, source=source, prompts=prompts, limit=None, library=False
        )
    except UserError:
        return None
    texts = ([e.prompt for e in examples], [e.golds[0] for e in examples])
    if tokenizer is not None and tokenizer.is_file():
        from tokenizers import Tokenizer

        read = Tokenizer.from_file(str(tokenizer))
        prompt, answer = (_counted(read, each) for each in texts)
        how = "counted"
    else:
        prompt, answer = ([_tokens(len(text)) for text in each] for each in texts)
        how = f"counted, {CHARACTERS_A_TOKEN} characters a token"
    return LengthStats(
        examples=len(examples),
        mean=(sum(prompt) / len(examples), sum(answer) / len(examples) + 1),
        longest=(round(max(prompt)), round(max(answer)) + 1),
        source=how,
    )


def limits_alone(task: Task) -> LengthStats:
    """What is left where nothing is known: no example is longer than the yaml allows."""
    return LengthStats(
        examples=None,
        mean=None,
        longest=(task.max_prompt_tokens, task.max_new_tokens),
        source="the limits in the dataset's yaml",
    )


def within_limits(lengths: LengthStats, task: Task) -> LengthStats:
    """Longer examples are cut or left out."""
    prompt, answer = lengths.longest
    longest = (min(prompt, task.max_prompt_tokens), min(answer, task.max_new_tokens))
    return LengthStats(
        examples=lengths.examples, mean=lengths.mean, longest=longest, source=lengths.source
    )


def _counted(tokenizer: Tokenizer, texts: Sequence[str]) -> list[float]:
    encoded = tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
    return [float(len(each)) for each in encoded]


def _tokens(characters: int) -> float:
    return characters / CHARACTERS_A_TOKEN
