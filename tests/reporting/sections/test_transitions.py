"""Retained, forgotten, learned."""

from __future__ import annotations

from imsm.reporting.report_data import ReportData
from tests.reporting.factories import N, cell, section


def test_counts_add_up_and_the_target_has_no_retention(data: ReportData) -> None:
    found = section(data, "transitions")
    names = ("retained", "forgotten", "learned", "never known")
    assert sum(int(cell(found, name, task="webq", run="peft")) for name in names) == N
    assert cell(found, "retention", task="gsm8k (target)", run="imsm") == "target"
    assert cell(found, "retention", task="webq", run="imsm").endswith(" %")
    assert cell(found, "retention", task="mrpc", run="imsm") == "undefined"
