"""Render a report as one HTML page without external resources, `report.html`."""

import base64
from collections.abc import Mapping
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from imsm.reporting.render.document import Report, Section, TokenHeatmap
from imsm.utils.control_characters import escape_controls

_MAX_TEXT = 600
"""Longest prompt or response on the page, in characters; the predictions have the complete texts."""


def render_html(report: Report, figures: Mapping[str, bytes]) -> str:
    """Return the page; all text is escaped and the figures (PNG by name) are embedded."""
    # jinja2 escapes all text, responses of a model included; undefined names are errors, not empty text
    environment = Environment(
        loader=PackageLoader("imsm.reporting.render", ""), autoescape=True, undefined=StrictUndefined
    )
    sections = [_section_values(section, figures) for section in report.sections]
    page = environment.get_template("report.html.jinja").render(report=report, sections=sections)
    return escape_controls(page)


def _section_values(section: Section, figures: Mapping[str, bytes]) -> dict[str, Any]:
    return {
        "section": section,
        # the table escapes its own cells
        "table": None if section.table is None else Markup(section.table.to_html()),
        "figures": [
            {"alt": figure.alt, "data": base64.b64encode(figures[figure.name]).decode()} for figure in section.figures
        ],
        "heatmaps": [_heatmap_values(heatmap) for heatmap in section.heatmaps],
    }


def _heatmap_values(heatmap: TokenHeatmap) -> dict[str, Any]:
    texts = [("prompt", heatmap.prompt), ("accepted", heatmap.references), *heatmap.others]
    return {
        "title": heatmap.title,
        "texts": [(name, _shorten(text.strip()) or "∅") for name, text in texts],
        "tokens": _shade(heatmap),
    }


def _shorten(text: str) -> str:
    """Return both ends of a long text: prompts begin with instructions and end with the question."""
    return text if len(text) <= _MAX_TEXT else f"{text[: _MAX_TEXT // 2]} […] {text[-_MAX_TEXT // 2 :]}"


def _shade(heatmap: TokenHeatmap) -> list[dict[str, str]]:
    """Return text, gate weight and opacity of the background of each token."""
    # scaled to each response, because weights differ little within it
    low, high = min(heatmap.weights), max(heatmap.weights)
    width = (high - low) or 1.0
    return [
        # a token without text, e.g. one byte of a character, needs something to shade
        {
            "text": piece.replace("\n", "⏎\n") or "∅",
            "weight": f"{weight:.3f}",
            "shade": f"{0.05 + 0.6 * (weight - low) / width:.2f}",
        }
        for piece, weight in zip(heatmap.pieces, heatmap.weights, strict=True)
    ]
