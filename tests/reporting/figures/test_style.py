"""Styles repeat after the last one, and rows run from top to bottom."""

from __future__ import annotations

from imsm.reporting.figures.style import COLORS, WIDTH, color, error_bar, label_rows, legend_below, line, one_axes


def test_styles_repeat() -> None:
    assert color(len(COLORS)) == color(0)


def test_error_bars_lines_and_row_labels() -> None:
    figure, axes = one_axes(height=2.0)
    error_bar(axes, 5.0, (6.0, 4.0), 0, style=9, label="a")  # bounds on the wrong side give no negative bar
    line(axes, range(2), [1.0, 2.0], style=9, label="b", markers=False)
    label_rows(axes, ["first", "second"])
    legend_below(figure, axes)
    assert tuple(figure.get_size_inches()) == (WIDTH, 2.0)
    assert [label.get_text() for label in axes.get_yticklabels()] == ["first", "second"]
    assert axes.get_ylim() == (1.5, -0.5)
    assert {text.get_text() for text in figure.legends[0].get_texts()} == {"a", "b"}


def test_the_legend_fits_into_the_figure() -> None:
    long = "imsm (query r8 loss=route, frozen adapter)"
    for names in (["peft", "imsm"], [long] * 3, [f"run {number}" for number in range(9)]):
        figure, axes = one_axes(height=3)
        for style, name in enumerate(names):
            line(axes, [0, 1], [0, 1], style=style, label=name)
        legend_below(figure, axes)
        figure.draw_without_rendering()
        box = figure.legends[0].get_window_extent()
        assert box.x0 >= 0 and box.x1 <= figure.bbox.width
