"""The heat map of a task sequence."""

from __future__ import annotations

from pathlib import Path

import pytest

from imsm.reporting.continual import heatmap
from tests.reporting.continual.records import record


def test_cells_show_score_and_difference(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    texts: list[str] = []
    draw_cell = heatmap._draw_cell

    def recorded(axes, *arguments, **options) -> None:
        draw_cell(axes, *arguments, **options)
        texts.append("\n".join(text.get_text() for text in axes.texts[sum(t.count("\n") + 1 for t in texts) :]))

    monkeypatch.setattr(heatmap, "_draw_cell", recorded)
    heatmap.draw_heatmap([record(missing=True)], tmp_path / "map.png")
    assert (tmp_path / "map.png").read_bytes().startswith(b"\x89PNG")
    assert texts == [
        "50.0",
        "40.0",
        "30.0",
        "70.0\n+20.0",
        "41.0\n+1.0",
        "29.0\n−1.0",
        "60.0\n+10.0",
        "–",
        "28.0\n−2.0",
    ]


def test_methods_with_different_numbers_of_tasks_have_a_panel_each(tmp_path: Path) -> None:
    other = record("peft")
    other["tasks"], other["scores"] = other["tasks"][:2], [row[:2] for row in other["scores"]]
    heatmap.draw_heatmap([other, record()], tmp_path / "map.png")
    assert (tmp_path / "map.png").is_file()
