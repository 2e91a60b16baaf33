"""Parameters, time and memory."""

from __future__ import annotations

from tests.reporting.factories import cell, data_of, section, three_results


def test_the_original_has_no_training_cost() -> None:
    found = section(data_of(three_results()), "cost")
    assert [cell(found, name, run="original") for name in ("adapter", "training", "memory")] == ["0", "–", "–"]
    row = [cell(found, name, run="imsm") for name in ("adapter", "gate", "training", "memory", "evaluation")]
    assert row == ["1,000", "50", "1m 15s", "810.0 MB", "5m 10s"]
    assert cell(found, "eval tok/s", run="imsm") == "100"
