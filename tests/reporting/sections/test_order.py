"""All sections of a report."""

from __future__ import annotations

from typing import Any

import pytest

from imsm.reporting.report_data import ReportData
from imsm.reporting.sections.order import build_sections
from tests.helpers.config import result
from tests.reporting.factories import data_of, report_data


def test_a_complete_report_has_every_section_but_seeds(data: ReportData) -> None:
    names = [each.name for each in build_sections(data)]
    assert names == [
        "tradeoff", "run", "overview", "scores", "differences", "transitions", "averages", "baselines",
        "responses", "gate", "training", "protocols", "cost",
    ]  # fmt: skip


def test_sections_without_content_are_omitted(runs: dict[str, Any]) -> None:
    for method in ("original", "peft", "imsm"):
        for path in runs[method][0].glob("evaluation/*/predictions.jsonl"):
            path.unlink()
    names = {each.name for each in build_sections(report_data(runs)[1])}
    assert {"overview", "averages", "responses", "cost"} <= names
    assert not {"scores", "differences", "transitions", "gate"} & names


def test_the_original_alone_has_a_report() -> None:
    names = [each.name for each in build_sections(data_of([result("original")]))]
    assert names == ["run", "overview", "averages", "responses", "protocols", "cost"]


@pytest.mark.parametrize("name", ["scores", "differences", "transitions", "tradeoff", "gate", "training"])
def test_every_figure_can_be_drawn(data: ReportData, name: str) -> None:
    (figure,) = next(each for each in build_sections(data) if each.name == name).figures
    assert figure.name == name and figure.draw().axes
