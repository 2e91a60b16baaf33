"""One table in five formats."""

from __future__ import annotations

import csv
import io

from rich.console import Console

from imsm.reporting.render.table import Table, print_table

TABLE = Table(
    columns=["run", "a_b"],
    rows=[["imsm [r8] | x", "−1.5"], ["<b>", "50 %"]],
    caption="Scores & more",
    notes=["[bold]note"],
)


def test_records_keep_the_order_of_columns_and_fill_gaps() -> None:
    table = Table.from_records([{"task": "a", "x": "1"}, {"task": "b", "y": "2"}])
    assert table.columns == ["task", "x", "y"] and table.rows == [["a", "1", "–"], ["b", "–", "2"]]
    assert table.select(["y", "task"]).rows == [["–", "a"], ["2", "b"]]
    assert table.column("x") == ["1", "–"]


def test_markdown_is_regular_and_escapes_bars() -> None:
    lines = TABLE.to_markdown().splitlines()
    assert {line.replace(r"\|", "").count("|") for line in lines} == {3}
    assert "imsm [r8] \\| x" in lines[2]
    assert lines[1].startswith("|:-") and lines[1].endswith("-:|")
    assert Table(columns=["a"], rows=[]).to_markdown().startswith("| a")


def test_html_escapes_cells_and_marks_numbers() -> None:
    text = TABLE.to_html()
    assert "&lt;b&gt;" in text and "<b>" not in text
    assert '<th scope="col">run</th><th scope="col" class="n">a_b</th>' in text
    assert '<td class="n">50 %</td>' in text


def test_csv_reads_back() -> None:
    assert list(csv.reader(io.StringIO(TABLE.to_csv()))) == [TABLE.columns, *TABLE.rows]


def test_latex_escapes_special_characters() -> None:
    text = TABLE.to_latex()
    assert r"\caption{Scores \& more}" in text and r"\begin{tabular}{lr}" in text
    assert r"run & a\_b \\" in text and r"50 \%" in text and r"$<$b$>$" in text and "$-$1.5" in text
    assert text.count(r"\\") == 3


def test_a_terminal_shows_cells_in_full_and_without_markup() -> None:
    stream = io.StringIO()
    console = Console(file=stream, width=8)
    print_table(TABLE, console)
    text = stream.getvalue()
    assert "imsm [r8] | x" in text and "…" not in text and "[bold]" in text
    assert console.width == 8
