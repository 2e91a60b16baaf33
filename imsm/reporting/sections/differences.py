"""Section: paired differences between runs."""

from __future__ import annotations

from imsm.reporting.figures.report import draw_differences
from imsm.reporting.paired_comparison import PairedComparison
from imsm.reporting.render.document import ReportFigure, Section
from imsm.reporting.render.formatting import MISSING, format_interval, format_number, format_p_value
from imsm.reporting.render.table import Table
from imsm.reporting.report_data import ReportData


def build(data: ReportData) -> Section | None:
    """Build the section, or None without comparisons."""
    if not data.comparisons:
        return None
    family = sum(comparison.holm_p_value is not None for comparison in data.comparisons)
    table = Table.from_records([_record(data, each) for each in data.comparisons], text_columns=2)
    text = (
        "Both runs on the same examples: difference in points with its 95 % bootstrap interval, clustered by passage; "
        "the numbers of examples that only the run, and only the reference, answers correctly; the exact p-value of "
        f"McNemar's test, and its Holm adjustment over the {family} tests of this report (every task and reference "
        "with correct or wrong answers, except forgetting tests marked †). Min. detectable difference: the smallest "
        "difference that this number of examples detects with a power of 80 %."
    )
    figure = ReportFigure(
        name="differences",
        alt="Differences of runs from their references by task with 95 % intervals",
        draw=lambda: draw_differences(data),
    )
    return Section(
        name="differences",
        title="Paired differences",
        paragraphs=[text],
        table=table,
        terminal_table=table.select(["task", "run − reference", "difference", "p, Holm"]),
        figures=[figure],
    )


def _record(data: ReportData, comparison: PairedComparison) -> dict[str, str]:
    difference, test = comparison.difference, comparison.test
    return {
        "task": data.name(comparison.task),
        "run − reference": f"{comparison.run} − {comparison.reference}",
        "difference": format_interval(difference.estimate, difference.low, difference.high, signed=True),
        "better : worse": MISSING if test is None else f"{test.better} : {test.worse}",
        "p, McNemar": format_p_value(test.p_value if test else None),
        "p, Holm": format_p_value(comparison.holm_p_value),
        "min. detectable difference": format_number(comparison.minimum_detectable),
    }
