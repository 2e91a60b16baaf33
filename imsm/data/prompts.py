"""Prompts without answers, from a file of the user."""

from pathlib import Path

from imsm.data.local_files import ENDINGS, LocatedRow, iter_rows
from imsm.data.row_validation import repr_short
from imsm.utils.errors import UserError

_FIELDS = ("input", "prompt")


def read_prompts(path: Path, *, given: str) -> list[str]:
    """Return the distinct prompts of a file: one per line, or JSON rows with a text "input" or "prompt".

    ``given`` is the option that names the file, for messages.

    Raises:
        UserError: The file cannot be read, or holds no prompt.
    """
    try:
        if path.name.endswith(ENDINGS):
            found = [_prompt(row, given=given) for row in iter_rows(path)]
        else:
            found = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{given}: cannot be read as prompts ({error}); give a text or JSON lines file") from error
    prompts = list(dict.fromkeys(text for text in found if text.strip()))
    if not prompts:
        raise UserError(f'{given}: contains no prompt; give one per line, or JSON rows {{"input": prompt}}')
    return prompts


def _prompt(row: LocatedRow, *, given: str) -> str:
    """Return the prompt of a row; "" if it has none."""
    if not isinstance(row.value, dict):
        raise UserError(f'{given}: {row.location} must be an object {{"input": prompt}}, not {repr_short(row.value)}')
    return next((row.value[key] for key in _FIELDS if isinstance(row.value.get(key), str)), "")
