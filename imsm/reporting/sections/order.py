"""The parts of a report card in their order."""

from __future__ import annotations

from imsm.reporting.report_data import ReportData
from imsm.reporting.sections import (
    answers,
    averages,
    baselines,
    differences,
    gate,
    protocols,
    scores,
    seeds,
    tradeoff,
    training,
    transitions,
)
from imsm.reporting.sections.base import Section

_PARTS = (scores, differences, transitions, averages, tradeoff, baselines, seeds, answers, gate, training, protocols)


def build_sections(evidence: ReportData) -> list[Section]:
    """All parts that there is something to say in."""
    found = [module.build(evidence) for module in _PARTS]
    return [part for part in found if part is not None]
