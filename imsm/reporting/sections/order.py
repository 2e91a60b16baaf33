"""The sections of a report in their order."""

from imsm.reporting.render.document import Section
from imsm.reporting.report_data import ReportData
from imsm.reporting.sections import backend, cost, differences, gate, responses, scores, settings, tradeoff

# what a reader decides by comes first; the details follow
_BUILDERS = (
    tradeoff.build_tradeoff,
    settings.build_settings,
    scores.build_overview,
    scores.build_scores,
    differences.build_differences,
    differences.build_transitions,
    tradeoff.build_averages,
    tradeoff.build_baselines,
    differences.build_seeds,
    responses.build_responses,
    backend.build_backend,
    gate.build_gate,
    cost.build_training,
    scores.build_protocols,
    cost.build_cost,
)


def build_sections(data: ReportData) -> list[Section]:
    """Build all sections that have content."""
    return [section for build in _BUILDERS if (section := build(data)) is not None]
