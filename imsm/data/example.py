"""Example: the record that every dataset is converted to."""

from dataclasses import dataclass

from imsm.utils.errors import UserError

Turn = tuple[str, str]
"""Role ("system", "user" or "assistant") and text of a message."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """One question with its accepted answers.

    Attributes:
        id: Unique and stable within the task: "mrpc/test/17" (task, split, row).
        prompt: All text before the answer.
        golds: Accepted answers, at least one; golds[0] is the training target.
        context: [start, end) of the characters in ``prompt`` that may be truncated from the
            left; None forbids truncation.
        group: Examples that share a passage share a group (clustered statistics); default: id.
        turns: The messages in ``prompt``, for a chat template; default: one of the user.

    Raises:
        UserError: No answer, a blank or non-string answer, or a context outside the prompt.
    """

    id: str
    prompt: str
    golds: tuple[str, ...]
    context: tuple[int, int] | None = None
    group: str = ""
    turns: tuple[Turn, ...] = ()

    def __post_init__(self) -> None:
        """Check what a custom task module may get wrong."""
        if not self.golds:
            raise UserError(f"{self.id}: the list of accepted answers is empty")
        for gold in self.golds:
            if not isinstance(gold, str) or not gold.strip():
                raise UserError(f"{self.id}: the answer {gold!r} is not a non-blank string")
        length = len(self.prompt)
        if self.context is not None and not 0 <= self.context[0] <= self.context[1] <= length:
            raise UserError(f"{self.id}: context {self.context} is outside the prompt of {length} characters")
        if not self.group:
            object.__setattr__(self, "group", self.id)
