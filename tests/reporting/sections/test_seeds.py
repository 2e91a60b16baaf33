"""Scores over seeds."""

from __future__ import annotations

from typing import Any

from imsm.evaluation.statistics.significance import student_t
from tests.reporting.factories import cell, evaluate_on_other_examples, report_data, section, write_seed


def test_seeds_are_compared_on_the_same_examples(runs: dict[str, Any]) -> None:
    for method in ("peft", "imsm"):
        write_seed(runs, method, seed=1)
        write_seed(runs, method, seed=2, others=("webq",) if method == "imsm" else ())
    comparison, data = report_data(runs)
    found = section(data, "seeds")
    assert cell(found, "seeds", task="webq", run="imsm") == "2"
    assert cell(found, "seeds", task="webq", run="peft") == "3"
    assert cell(found, "seeds", task="multirc", run="imsm") == "3"
    assert "webq of imsm with seed 2." in comparison.excluded[0]
    scores = {
        method: [
            r["evaluation"]["tasks"]["mrpc"]["metrics"][data.metrics["mrpc"]] for r in data.seeds[method].values()
        ]
        for method in ("peft", "imsm")
    }
    test = student_t(scores["imsm"], scores["peft"])
    assert test is not None and cell(found, "t, versus PEFT", task="mrpc", run="imsm") == f"{test.t:+.2f}"


def test_seeds_that_all_lack_a_task_have_no_test(runs: dict[str, Any]) -> None:
    evaluate_on_other_examples(runs, ["webq"])
    write_seed(runs, "peft", seed=1)
    write_seed(runs, "imsm", seed=1)
    found = section(report_data(runs)[1], "seeds")
    assert cell(found, "seeds", task="webq", run="peft") == "0"
    assert cell(found, "mean", task="webq", run="peft") == "–"
    assert cell(found, "p, Student", task="webq", run="imsm") == "–"
