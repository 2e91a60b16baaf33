"""The figure of the gate."""

from __future__ import annotations

from imsm.reporting.figures.gate import draw_gate
from imsm.reporting.report_data import ReportData


def test_three_panels_for_each_run(data: ReportData) -> None:
    figure = draw_gate(data, [data.focus])
    histogram, positions, outcomes = figure.axes
    assert [axes.get_title() for axes in figure.axes] == ["over examples", "along the response", "correct and wrong"]
    assert len(positions.lines) == len(histogram.patches) == 5
    assert [text.get_text() for text in outcomes.get_legend().get_texts()] == ["correct", "wrong"]
