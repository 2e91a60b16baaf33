"""Print the short form of a report."""

from rich.console import Console

from imsm.reporting.render.document import Report
from imsm.reporting.render.table import print_notes, print_table
from imsm.utils.control_characters import escape_controls


def print_report(report: Report, *, console: Console | None = None) -> None:
    """Print the sections that have a terminal table, and what was excluded."""
    console = console or Console()
    console.print()
    console.print(escape_controls(report.subtitle), style="bold", highlight=False, markup=False)
    for sentence in report.headline:
        console.print(escape_controls(sentence), highlight=False, markup=False)
    print_notes(report.excluded, console, wrap=False)
    for section in report.sections:
        if section.terminal_table is not None:
            console.print(escape_controls(section.title), style="bold", highlight=False, markup=False)
            print_table(section.terminal_table, console)
            print_notes(section.notes, console)
