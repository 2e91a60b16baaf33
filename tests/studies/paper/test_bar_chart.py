"""Figures 3 and 4."""

from __future__ import annotations

from pathlib import Path

from matplotlib.image import imread

from imsm.studies.paper.bar_chart import draw_bars, write_bars
from imsm.studies.paper.runs import RunIndex, required_runs
from imsm.studies.paper.spec import load_table
from imsm.studies.paper.table import build_table
from tests.studies.paper.finished import write_run


def test_a_figure_with_missing_runs_is_drawn(runs: RunIndex, tmp_path: Path) -> None:
    table = load_table("figure3")
    for number, run in enumerate(required_runs(table, runs, scale="mini", seeds=1)[:4]):
        write_run(run, runs, known=0.6, seed=number)
    runs.refresh()
    figure = draw_bars(table, build_table(table, runs, scale="mini", seeds=1, protocol="strict"))
    assert [axes.get_title() for axes in figure.axes] == ["tuned on: ropes", "tuned on: gsm8k"]
    assert "missing runs (–): 2" in figure.get_suptitle()
    write_bars(figure, tmp_path / "out")
    assert imread(tmp_path / "out" / "figure.png").std() > 0
    assert (tmp_path / "out" / "figure.svg").is_file()
