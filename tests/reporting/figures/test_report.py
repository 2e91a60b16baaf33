"""The figures show each number of the data once."""

from __future__ import annotations

from imsm.reporting.figures.report import draw_differences, draw_scores, draw_tradeoff, draw_transitions
from imsm.reporting.report_data import ReportData


def legend(figure) -> list[str]:
    return [text.get_text() for text in figure.legends[0].get_texts()]


def test_scores_have_an_error_bar_for_each_run_and_task(data: ReportData) -> None:
    figure = draw_scores(data)
    assert len(figure.axes[0].containers) == len(data.score_intervals) == 15
    assert legend(figure) == ["original", "peft", "imsm"]


def test_differences_have_an_error_bar_for_each_comparison(data: ReportData) -> None:
    figure = draw_differences(data)
    assert len(figure.axes[0].containers) == 15
    assert legend(figure) == ["peft − original", "imsm − original", "imsm − peft"]


def test_transitions_stack_to_100_percent(data: ReportData) -> None:
    figure = draw_transitions(data)
    bars = [bar for container in figure.axes[0].containers for bar in container]
    assert sum(bar.get_width() for bar in bars) / len(data.retentions) == 100
    assert legend(figure) == ["retained", "forgotten", "learned", "never known"]


def test_the_tradeoff_has_a_line_for_the_sweep_and_a_plasticity_axis(data: ReportData) -> None:
    figure = draw_tradeoff(data)
    assert legend(figure) == ["logit mix (λ)", "original", "peft", "imsm"]
    assert [text.get_text() for text in figure.axes[0].texts] == ["0.25", "0.75"]
    assert len(figure.axes[0].child_axes) == 1
