r"""Formats of ready-made examples: the keys of a row determine its prompt and its answer.

    {"input": "Q: ...\\nA:", "output": "..."}                              prompt and answer as they are
    {"prompt": "...", "completion": "..."}                                likewise, or both lists of messages
    {"instruction": "...", "input": "...", "output": "..."}               Alpaca; input and system are optional
    {"messages": [{"role": "user", "content": "..."}, ...]}               the last turn is the answer
    {"question": "...", "answer": "..."}                                  prompt and answer as they are

`output` and `answer` may be lists of accepted answers, of which the first is the training target.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

from imsm.data.example import Turn
from imsm.data.row_validation import get_answers, get_field, get_str, repr_short
from imsm.utils.errors import UserError

_ROLES = {"system": "System", "user": "User", "assistant": "Assistant"}


class Content(NamedTuple):
    """Prompt, accepted answers, and the prompt's turns if a chat template has to format several."""

    prompt: str
    golds: tuple[str, ...]
    turns: tuple[Turn, ...] = ()


@dataclass(frozen=True, kw_only=True)
class RowFormat:
    """A format: its required and optional keys, and the function that reads a row."""

    keys: tuple[str, ...]
    optional: tuple[str, ...] = ()
    read: Callable[[Mapping[str, Any]], Content]

    def __str__(self) -> str:
        """Return the required keys as text."""
        return " and ".join(self.keys)

    @property
    def all_keys(self) -> frozenset[str]:
        """Required and optional keys."""
        return frozenset(self.keys + self.optional)


def find_format(row: Any) -> RowFormat | None:
    """Return the format of a row, or None if it has none.

    Raises:
        UserError: The row has the keys of several formats.
    """
    return _format_of(tuple(row)) if isinstance(row, Mapping) else None


# the rows of a file have the same keys
@lru_cache(maxsize=128)
def _format_of(row_keys: tuple[str, ...]) -> RowFormat | None:
    matches = [known for known in FORMATS if set(known.keys) <= set(row_keys)]
    # Alpaca's rows contain input and output as well
    found = [one for one in matches if not any(one.all_keys < other.all_keys for other in matches)]
    if len(found) > 1:
        raise UserError(f"has the keys {', and '.join(map(str, found))}; keep those of one format")
    return found[0] if found else None


def require_format(row: Any, expected: RowFormat | None = None) -> RowFormat:
    """Return the format of a row, which must be ``expected`` unless that is None.

    Raises:
        UserError: The row has no format, several, or another one.
    """
    found = find_format(row)
    if found is None:
        keys = f"the keys {', '.join(map(str, row)) or 'none'}" if isinstance(row, Mapping) else repr_short(row)
        raise UserError(f"must be an object with {'; or '.join(map(str, FORMATS))}; it has {keys}")
    if expected is not None and found is not expected:
        raise UserError(f"has {found}, but the rows before it {expected}; use one format per file")
    return found


def _answers(row: Mapping[str, Any], key: str) -> tuple[str, ...]:
    value = get_field(row, key)
    return get_answers([value] if isinstance(value, str) else value, name=key)


def _read_pair(prompt_key: str, answer_key: str) -> Callable[[Mapping[str, Any]], Content]:
    return lambda row: Content(get_str(row, prompt_key), _answers(row, answer_key))


def _read_alpaca(row: Mapping[str, Any]) -> Content:
    """The prompt is the instruction, or instruction, blank line and input; a system text comes first."""
    texts = {key: get_str(row, key, allow_blank=True) for key in ("system", "input") if row.get(key) is not None}
    system, context = (texts.get(key, "") for key in ("system", "input"))
    request = "\n\n".join([get_str(row, "instruction"), *([context] if context.strip() else [])])
    if not system.strip():
        return Content(request, _answers(row, "output"))
    turns: tuple[Turn, ...] = (("system", system), ("user", request))
    return Content(f"{system}\n\n{request}", _answers(row, "output"), turns)


def _read_prompt_and_completion(row: Mapping[str, Any]) -> Content:
    if isinstance(row["prompt"], str) and isinstance(row["completion"], str):
        return Content(get_str(row, "prompt"), (get_str(row, "completion"),))
    if not isinstance(row["prompt"], list) or not isinstance(row["completion"], list):
        raise UserError("prompt and completion: must both be strings, or both lists of messages")
    if len(row["completion"]) != 1:
        raise UserError(f"completion: must have one message, not {len(row['completion'])}")
    return _read_turns([*row["prompt"], *row["completion"]], key="completion")


def _read_messages(row: Mapping[str, Any]) -> Content:
    if not isinstance(row["messages"], list):
        raise UserError(f"messages: must be a list of messages, not {repr_short(row['messages'])}")
    return _read_turns(row["messages"], key="messages")


def _read_turns(messages: list[Any], *, key: str) -> Content:
    """The last turn is the answer; the turns before it are the prompt, labelled by role."""
    turns: list[Turn] = []
    for number, message in enumerate(messages, start=1):
        try:
            role = get_str(message, "role")
            if role not in _ROLES:
                raise UserError(f"role={role}: must be {', '.join(_ROLES)}")
            turns.append((role, get_str(message, "content")))
        except UserError as error:
            raise UserError(f"{key}, message {number}: {error}") from error
    if not turns or turns[-1][0] != "assistant":
        raise UserError(f"{key}: must end in a message of the assistant, which is the answer")
    if not any(role == "user" for role, _ in turns[:-1]):
        raise UserError(f"{key}: has no message of the user before the answer")
    lines = [f"{_ROLES[role]}: {text}" for role, text in turns[:-1]]
    return Content("\n\n".join([*lines, "Assistant:"]), (turns[-1][1],), tuple(turns[:-1]))


FORMATS = (
    RowFormat(keys=("input", "output"), read=_read_pair("input", "output")),
    RowFormat(keys=("prompt", "completion"), read=_read_prompt_and_completion),
    RowFormat(keys=("instruction", "output"), optional=("input", "system"), read=_read_alpaca),
    RowFormat(keys=("messages",), read=_read_messages),
    RowFormat(keys=("question", "answer"), read=_read_pair("question", "answer")),
)
QUESTION_AND_ANSWER = FORMATS[-1]
"""The only format that a dataset's own records may have as well."""
