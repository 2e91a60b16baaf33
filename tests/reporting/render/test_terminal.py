"""The short report of the terminal."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from imsm.reporting.render.document import Report, Section
from imsm.reporting.render.table import Table
from imsm.reporting.render.terminal import print_report
from tests.reporting.factories import report_of


def printed(report: Report, width: int = 80) -> str:
    stream = io.StringIO()
    print_report(report, console=Console(file=stream, width=width))
    return stream.getvalue()


def test_only_sections_with_a_terminal_table_are_shown() -> None:
    table = Table(columns=["task"], rows=[["webq [x]"]])
    shown = Section(name="a", title="Shown", table=table, terminal_table=table, notes=["A note."])
    hidden = Section(name="b", title="Hidden", table=table)
    command = "imsm report " + "x" * 200
    report = Report(
        title="run", subtitle="mini", excluded=[command], load_errors=["e"], sections=[shown, hidden], provenance=[]
    )
    text = printed(report)
    assert "Shown" in text and "webq [x]" in text and "A note." in text and "Hidden" not in text
    assert command in text.splitlines()


@pytest.mark.parametrize("width", [80, 120])
def test_three_runs_fit_into_a_terminal(width: int) -> None:
    lines = printed(report_of("data=mrpc"), width).splitlines()
    assert max(map(len, lines)) <= width and not any("…" in line for line in lines)
    for run, points, to_original, to_peft in (
        ("original", "50.0", "", ""),
        ("peft", "42.3", "−7.7", ""),
        ("imsm", "47.8", "−2.2", "+5.5"),
    ):
        # four tasks and the average
        assert sum(all(cell in line for cell in (run, points, to_original, to_peft)) for line in lines) == 5
    text = "\n".join(lines)
    assert "1,000" in text and "1m 15s" in text and "810.0 MB" in text and "† mrpc" in text


def test_control_characters_are_visible_escapes() -> None:
    text = "\x1b[2J\u202e"
    table = Table(columns=[text], rows=[[text]], caption=text)
    section = Section(name="a", title=text, table=table, terminal_table=table, notes=[text])
    report = Report(title=text, subtitle=text, excluded=[text], load_errors=[], sections=[section], provenance=[])
    shown = printed(report)
    assert not set(shown) & set("\x1b\u202e") and shown.count(r"\x1b[2J\u202e") == 7
