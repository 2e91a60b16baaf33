"""Response lengths and likelihoods."""

from __future__ import annotations

from imsm.reporting.report_data import ReportData
from tests.reporting.factories import cell, data_of, section, three_results


def test_counts_lengths_and_likelihoods(data: ReportData) -> None:
    found = section(data, "responses")
    row = {"task": "webq", "run": "imsm"}
    assert [cell(found, name, **row) for name in ("examples", "unparsed", "truncated")] == ["60", "3", "1"]
    assert cell(found, "ln p of the reference", **row) == cell(found, "per token", **row) == "−1.50"
    assert cell(found, "tokens per response", **row) == "103.3"


def test_without_predictions_the_likelihood_per_token_is_a_dash() -> None:
    found = section(data_of(three_results()), "responses")
    assert cell(found, "per token", task="webq", run="imsm") == "–"
