"""The Markdown report."""

from __future__ import annotations

from matplotlib.figure import Figure

from imsm.reporting.render.document import Report, ReportFigure, Section
from imsm.reporting.render.markdown import render_markdown
from imsm.reporting.render.table import Table


def test_blocks_are_in_order_and_figures_are_linked() -> None:
    section = Section(
        name="scores",
        title="Scores",
        paragraphs=["Above."],
        table=Table(columns=["task"], rows=[["webq"]]),
        notes=["Below."],
        figures=[ReportFigure(name="scores", alt="Scores by task", draw=Figure)],
    )
    report = Report(
        title="run",
        subtitle="mini",
        excluded=["excluded"],
        load_errors=["error"],
        sections=[section],
        provenance=["p"],
    )
    blocks = render_markdown(report).rstrip().split("\n\n")
    assert blocks[:6] == ["# run", "mini", "excluded", "error", "## Scores", "Above."]
    assert blocks[6].startswith("| task")
    assert blocks[7:] == ["Below.", "![Scores by task](figures/scores.png)", "## Provenance", "- p"]
