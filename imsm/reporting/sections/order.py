"""The sections of a report in their order."""

from __future__ import annotations

from imsm.reporting.render.document import Section
from imsm.reporting.report_data import ReportData
from imsm.reporting.sections import (
    averages,
    baselines,
    cost,
    differences,
    gate,
    overview,
    protocols,
    responses,
    scores,
    seeds,
    tradeoff,
    training,
    transitions,
)

_SECTIONS = (
    overview,
    scores,
    differences,
    transitions,
    averages,
    tradeoff,
    baselines,
    seeds,
    responses,
    gate,
    training,
    protocols,
    cost,
)


def build_sections(data: ReportData) -> list[Section]:
    """Build all sections that have content."""
    found = [module.build(data) for module in _SECTIONS]
    return [section for section in found if section is not None]
