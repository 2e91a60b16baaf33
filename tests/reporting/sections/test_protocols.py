"""All metrics of both protocols."""

from __future__ import annotations

from typing import Any

from tests.reporting.factories import cell, data_of, evaluate_on_other_examples, report_data, section, three_results


def test_every_metric_has_scores_and_differences() -> None:
    found = section(data_of(three_results()), "protocols")
    assert cell(found, "imsm − peft", task="webq", metric="exact_match") == "+5.5"
    assert cell(found, "protocol", task="webq", metric="exact_match") == "strict"


def test_protocols_have_rows_of_their_own() -> None:
    results = three_results()
    for record in results:
        entry = record["evaluation"]["tasks"]["webq"]
        entry["protocols"] = {"strict": {"metrics": entry["metrics"]}, "paper_code": {"metrics": {"paper_code": 9.0}}}
    found = section(data_of(results), "protocols")
    assert cell(found, "imsm", task="webq", protocol="paper_code") == "9.0"


def test_scores_of_other_examples_are_dashes(runs: dict[str, Any]) -> None:
    evaluate_on_other_examples(runs, ["webq"])
    found = section(report_data(runs)[1], "protocols")
    assert cell(found, "peft", task="webq", metric="contain") == "–"
    assert cell(found, "imsm", task="webq", metric="contain") != "–"
