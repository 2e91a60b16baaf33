"""The table of paired differences."""

from __future__ import annotations

from imsm.reporting.report_data import ReportData
from tests.reporting.factories import section


def test_every_comparison_is_a_row_and_the_family_is_counted(data: ReportData) -> None:
    found = section(data, "differences")
    assert found.table is not None and len(found.table.rows) == 15
    assert found.table.column("run − reference")[:3] == ["peft − original", "imsm − original", "imsm − peft"]
    assert "over the 15 tests" in found.paragraphs[0]


def test_counts_are_a_dash_without_a_test(data: ReportData) -> None:
    comparison = data.comparisons[0]
    found, test = section(data, "differences"), comparison.test
    assert test is not None and found.table is not None
    assert found.table.column("better : worse")[0] == f"{test.better} : {test.worse}"
