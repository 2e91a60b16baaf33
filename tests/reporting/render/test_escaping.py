"""Escaping for Markdown, CSV and LaTeX."""

from __future__ import annotations

import csv
import io

import markdown
import pytest

from imsm.reporting.render.escaping import csv_cell, latex_text, markdown_cell, markdown_text
from imsm.reporting.render.table import Table


@pytest.mark.parametrize(
    "text", ["=1+1", "+cmd|x", "-2+3+a", "@SUM(A1)", "\t=1", " =1", "\n@x", "\uff1d1", "+1 [=A1]"]
)
def test_formulas_are_text(text: str) -> None:
    assert csv_cell(text) == f"'{text}"


@pytest.mark.parametrize(
    "text", ["-1.5", "+1.5", "-1.5 [-2.0, +0.5]", "-1e-5", "−1.5", "+3 %", "a=b", "", "–", "61.0"]
)
def test_numbers_and_other_text_stay(text: str) -> None:
    assert csv_cell(text) == text


def test_a_carriage_return_cannot_hide_a_formula() -> None:
    assert csv_cell("\r=1") == r"\x0d=1"


def test_text_in_markdown_is_no_html_link_or_image() -> None:
    text = "<b>x</b> [a](http://b) ![c](d) [e][f] 1 < 2 [58.0, 64.5] `imsm report`"
    shown = markdown.markdown(markdown_text(text))
    assert not [tag for tag in ("<b>", "<a ", "<img") if tag in shown]
    assert "1 &lt; 2 [58.0, 64.5] <code>imsm report</code>" in shown


def test_a_cell_in_markdown_ends_at_no_character_of_its_text() -> None:
    cells = ["a|b", r"a\|b", "`a|", "a\nb", "<i>"]
    page = markdown.markdown(
        Table(columns=["x", "y"], rows=[[cell, "z"] for cell in cells]).to_markdown(), extensions=["tables"]
    )
    assert page.count("<td") == 2 * len(cells) and page.count(">z</td>") == len(cells)
    assert not [tag for tag in ("<i>", "<code>") if tag in page]
    assert markdown_cell("a|b") == r"a\|b"


def test_latex_has_no_commands_of_the_text() -> None:
    assert latex_text(r"\input{x} 5% ±") == r"\textbackslash{}input\{x\} 5\% $\pm$"


def test_no_format_outputs_a_control_character() -> None:
    hostile = "\x1b[2J\u202e=cmd\u2028|\x9b"
    table = Table(columns=[hostile], rows=[[hostile]], caption=hostile, notes=[hostile])
    for text in (table.to_markdown(), table.to_html(), table.to_csv(), table.to_latex()):
        assert not set(text) & set("\x1b\u202e\u2028\x9b") and "x1b" in text
    assert list(csv.reader(io.StringIO(table.to_csv())))[1] == [r"\x1b[2J\u202e=cmd\u2028|\x9b"]
