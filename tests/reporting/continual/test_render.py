"""Tables of a task sequence."""

from __future__ import annotations

import io

from rich.console import Console

from imsm.reporting.continual.render import build_tables, render_markdown, render_terminal, row_names, score_frame
from tests.reporting.continual.records import record


def test_learned_tasks_are_marked_from_their_stage_on() -> None:
    scores, measures = build_tables([record()], {})
    assert scores.columns[1:] == ["mrpc exact match", "cola exact match", "webq exact match"]
    assert scores.rows[1] == ["1 mrpc", "70.0*", "41.0", "29.0"]
    assert scores.rows[2] == ["2 cola", "60.0*", "80.0*", "28.0"]
    values = dict(measures.rows)
    assert values["BWT, backward transfer"] == values["FM of mrpc"] == "−1.0 [−2.0, 0.5]"
    assert values["OP, overall performance"] == "70.0" and values["FWT, forward transfer"] == "–"


def test_differences_are_from_peft() -> None:
    tables = build_tables([record("peft"), record("imsm")], {"BWT": {"value": 2.0, "low": 1.0, "high": 3.0}})
    assert [table.caption for table in tables[:2]] == [
        "peft: scores after each stage",
        "imsm: scores after each stage",
    ]
    assert tables[-1].columns == ["measure", "imsm − peft"]
    assert tables[-1].rows == [["BWT", "+2.0 [+1.0, +3.0]"]]


def test_markdown_and_terminal_have_the_tables_and_the_notes() -> None:
    text = render_markdown([record(missing=True)], {})
    assert text.startswith("# Task sequence: mrpc, then cola") and "(sequence.png)" in text
    assert "not evaluated on the same examples" in text and "Brackets" not in text
    stream = io.StringIO()
    render_terminal([record()], {}, console=Console(file=stream, width=80))
    assert "2 cola" in stream.getvalue() and "Brackets" in stream.getvalue()


def test_the_frame_has_a_row_for_each_stage() -> None:
    frame = score_frame(record())
    assert list(frame.index) == row_names(record()) == ["original", "1 mrpc", "2 cola"]
    assert frame.loc["2 cola", "cola"] == 80.0
