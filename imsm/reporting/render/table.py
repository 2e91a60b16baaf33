"""A table of text cells that renders to a terminal, Markdown, HTML, CSV and LaTeX."""

from __future__ import annotations

import csv
import html
import io
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table as RichTable
from tabulate import tabulate

from imsm.reporting.render.escaping import csv_cell, latex_text, markdown_cell
from imsm.reporting.render.formatting import MISSING
from imsm.utils.control_characters import escape_controls


@dataclass(frozen=True, kw_only=True)
class Table:
    """Cells as text; the first ``text_columns`` columns are left-aligned.

    Control characters of the text become visible escapes, so that no renderer can output them.

    ``caption`` and ``notes`` are rendered by `to_latex` and `print_table`; elsewhere the page around
    the table shows them. ``bold_rows`` are indices of rows that are bold in a terminal.
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    text_columns: int = 1
    caption: str = ""
    notes: Sequence[str] = ()
    bold_rows: Collection[int] = ()

    def __post_init__(self) -> None:
        """Escape control characters in all text."""
        object.__setattr__(self, "columns", [escape_controls(name) for name in self.columns])
        object.__setattr__(self, "rows", [[escape_controls(cell) for cell in row] for row in self.rows])
        object.__setattr__(self, "caption", escape_controls(self.caption))
        object.__setattr__(self, "notes", [escape_controls(note) for note in self.notes])

    @classmethod
    def from_records(cls, records: Sequence[Mapping[str, str]], *, text_columns: int = 1) -> Table:
        """Build a table from rows by column name; a missing cell is a dash."""
        # in the order of first occurrence: a later record may have more columns
        columns = list(dict.fromkeys(name for record in records for name in record))
        rows = [[record.get(name, MISSING) for name in columns] for record in records]
        return cls(columns=columns, rows=rows, text_columns=text_columns)

    def select(self, columns: Sequence[str]) -> Table:
        """Return a table with some of the columns, in this order."""
        indices = [self.columns.index(name) for name in columns]
        rows = [[row[index] for index in indices] for row in self.rows]
        return replace(self, columns=list(columns), rows=rows)

    def column(self, name: str) -> list[str]:
        """Return the cells of a column."""
        index = self.columns.index(name)
        return [row[index] for row in self.rows]

    def to_markdown(self) -> str:
        """Return a GitHub table."""
        header, *rows = (list(map(markdown_cell, row)) for row in (self.columns, *self.rows))
        # tabulate refuses alignments of a table without rows
        align = ["right" if self._is_number(index) else "left" for index in range(len(header))] if rows else None
        # disable_numparse: tabulate would turn 61.0 into 61
        return tabulate(rows, header, tablefmt="pipe", colalign=align, disable_numparse=True)

    def to_html(self) -> str:
        """Return an HTML table with escaped cells; numbers have the class ``n``."""

        def cells(row: Sequence[str], tag: str, attributes: str = "") -> str:
            classes = [' class="n"' if self._is_number(index) else "" for index in range(len(row))]
            parts = zip(classes, map(html.escape, row), strict=True)
            return "".join(f"<{tag}{attributes}{name}>{text}</{tag}>" for name, text in parts)

        head = cells(self.columns, "th", ' scope="col"')
        body = [f"<tr>{cells(row, 'td')}</tr>" for row in self.rows]
        return "\n".join(["<table>", f"<thead><tr>{head}</tr></thead>", "<tbody>", *body, "</tbody>", "</table>"])

    def to_csv(self) -> str:
        """Return comma-separated values with a header; text is never a spreadsheet's formula."""
        stream = io.StringIO()
        rows = [list(map(csv_cell, row)) for row in (self.columns, *self.rows)]
        csv.writer(stream, lineterminator="\n").writerows(rows)
        return stream.getvalue()

    def to_latex(self) -> str:
        """Return a booktabs table; LaTeX's special characters are escaped."""
        header, *rows = (" & ".join(map(latex_text, row)) for row in (self.columns, *self.rows))
        layout = "".join("r" if self._is_number(index) else "l" for index in range(len(self.columns)))
        caption = [rf"\caption{{{latex_text(self.caption)}}}"] if self.caption else []
        rules = [r"\toprule", rf"{header} \\", r"\midrule", *(rf"{row} \\" for row in rows), r"\bottomrule"]
        lines = [*caption, rf"\begin{{tabular}}{{{layout}}}", *rules, r"\end{tabular}"]
        return "\n".join([r"\begin{table}", *lines, r"\end{table}", ""])

    def to_terminal(self) -> RichTable:
        """Return a rich table with escaped cells."""
        table = RichTable(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
        for index, name in enumerate(self.columns):
            table.add_column(escape(name), justify="right" if self._is_number(index) else "left", no_wrap=True)
        for index, row in enumerate(self.rows):
            table.add_row(*map(escape, row), style="bold" if index in self.bold_rows else None)
        return table

    def _is_number(self, index: int) -> bool:
        return index >= self.text_columns


def print_table(table: Table, console: Console) -> None:
    """Print a table with its caption and notes; cells are never truncated."""
    if table.caption:
        console.print(table.caption, style="bold", highlight=False, markup=False)
    shown, width = table.to_terminal(), console.width
    # rich truncates the cells of a table that is wider than the console
    console.width = max(width, console.measure(shown, options=console.options.update(max_width=10_000)).maximum)
    console.print(shown, crop=False)
    console.width = width
    print_notes(table.notes, console)


def print_notes(notes: Sequence[str], console: Console, *, wrap: bool = True) -> None:
    """Print dimmed paragraphs; ``wrap=False`` keeps commands in one line."""
    for note in notes:
        # markup would read [58.0, 64.5] as a style
        console.print(escape_controls(note), style="dim", highlight=False, soft_wrap=not wrap, markup=False)
