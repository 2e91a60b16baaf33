"""Escape text for Markdown, CSV and LaTeX."""

import re
import unicodedata

from imsm.utils.control_characters import escape_controls

_NUMBER = re.compile(r"[+-]?(\d[\d,.]*|\.\d+)(e[+-]?\d+)?\s*%?(\s*\[[^\[\]A-Za-z]*\])?", re.IGNORECASE)
"""A number, which may have an interval: ``-1.5``, ``+1.5 [0.3, 2.2]``."""

_LATEX = str.maketrans(
    {char: rf"\{char}" for char in "&%$#_{}"}
    | {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "\n": " ", "\t": " "}
    | {"−": "$-$", "–": "--", "±": r"$\pm$", "†": r"$^\dagger$", "‡": r"$^\ddagger$"}
    | {"°": r"$^\circ$", "·": r"$\cdot$", "λ": r"$\lambda$", "α": r"$\alpha$", "<": "$<$", ">": "$>$"}
)


def markdown_text(text: str) -> str:
    """Return text for a paragraph: no HTML, no links or images; backticks stay, for commands."""
    text = re.sub(r"<(?=[A-Za-z/!?])", "&lt;", text.replace("\n", " "))
    return re.sub(r"!\[|\](?=[(\[:])", lambda found: found[0].replace("[", "\\[").replace("]", "\\]"), text)


def markdown_cell(text: str) -> str:
    """Return text for a table's cell, in which backslashes, backticks and bars are literal too."""
    # the backslash too: `\|` in the text would otherwise become an escaped backslash and the end of the cell
    return markdown_text(re.sub(r"[\\`|]", r"\\\g<0>", text))


def csv_cell(text: str) -> str:
    """Return a cell without control characters; what a spreadsheet reads as a formula starts with an apostrophe."""
    text = escape_controls(text)
    # NFKC: spreadsheets accept the full-width forms too
    formula = unicodedata.normalize("NFKC", text.lstrip()[:1]) in ("=", "+", "-", "@")
    return f"'{text}" if formula and not _NUMBER.fullmatch(text) else text


def latex_text(text: str) -> str:
    """Return text with LaTeX's special characters escaped."""
    return text.translate(_LATEX)
