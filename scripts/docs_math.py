r"""MkDocs hook: render `$$ ... $$` and `\( ... \)` as MathML, so that pages need no script and no network."""

from __future__ import annotations

import re
from typing import Any

from latex2mathml.converter import convert


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Replace each formula of a page outside code blocks."""
    parts = re.split(r"(```.*?```|`[^`\n]+`)", markdown, flags=re.DOTALL)
    return "".join(part if part.startswith("`") else _formulas(part) for part in parts)


def _formulas(text: str) -> str:
    text = re.sub(r"\$\$(.+?)\$\$", lambda found: _block(found[1]), text, flags=re.DOTALL)
    return re.sub(r"\\\((.+?)\\\)", lambda found: convert(found[1].strip()), text)


def _block(formula: str) -> str:
    return f'<div style="margin: 1em 0; overflow-x: auto">{convert(formula.strip(), display="block")}</div>'
