"""The parts of a report card in their order."""

from __future__ import annotations

from imsm.report.evidence import ReportData
from imsm.report.parts import (
    answers,
    averages,
    controls,
    differences,
    gate,
    kept,
    protocols,
    scores,
    seeds,
    trade,
    training,
)
from imsm.report.section import Section

_PARTS = (
    scores,
    differences,
    kept,
    averages,
    trade,
    controls,
    seeds,
    answers,
    gate,
    training,
    protocols,
)


def build_sections(evidence: ReportData) -> list[Section]:
    """All parts that there is something to say in."""
    found = [module.part(evidence) for module in _PARTS]
    return [part for part in found if part is not None]
