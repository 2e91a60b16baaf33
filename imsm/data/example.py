"""The one record type that every dataset is turned into."""

from __future__ import annotations

from dataclasses import dataclass

from imsm.utils.errors import UserError


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """One question with its accepted answers.

    Raises:
        UserError: no answer, an answer that is not a text or is blank, or a context that does
            not lie inside the prompt.
    """

    id: str
    """Stable and unique in its task: "mrpc/test/17" (task, the source's split, position in it)."""
    prompt: str
    """All text before the answer."""
    golds: tuple[str, ...]
    """Accepted answers, at least one; golds[0] is the one that training teaches."""
    context: tuple[int, int] | None = None
    """[start, end) of the characters of prompt that may be cut from the left; None: no cut."""
    group: str = ""
    """Items that share a passage share a group (clustered statistics); by default the id."""

    def __post_init__(self) -> None:
        """Checks what a task file of one's own may get wrong."""
        if not self.golds:
            raise UserError(f"{self.id}: the list of accepted answers is empty.")
        for gold in self.golds:
            if not isinstance(gold, str) or not gold.strip():
                raise UserError(f"{self.id}: the answer {gold!r} is not a text with something in it.")
        if self.context is not None:
            start, end = self.context
            if not 0 <= start <= end <= len(self.prompt):
                raise UserError(
                    f"{self.id}: context {self.context} lies outside the prompt, "
                    f"which has {len(self.prompt)} characters."
                )
        if not self.group:
            object.__setattr__(self, "group", self.id)
