"""Paired differences, retained and forgotten examples, and seeds."""

from __future__ import annotations

from typing import Any

from imsm.evaluation.statistics.significance import student_t
from imsm.reporting.report_data import ReportData
from tests.reporting.factories import N, cell, evaluate_on_other_examples, report_data, section, write_seed


def test_every_comparison_is_a_row_and_the_family_is_counted(data: ReportData) -> None:
    found = section(data, "differences")
    assert found.table is not None and len(found.table.rows) == 15
    assert found.table.column("run − reference")[:3] == ["peft − original", "imsm − original", "imsm − peft"]
    assert "over the 15 tests" in found.paragraphs[0]


def test_counts_are_a_dash_without_a_test(data: ReportData) -> None:
    comparison = data.comparisons[0]
    found, test = section(data, "differences"), comparison.test
    assert test is not None and found.table is not None
    assert found.table.column("better : worse")[0] == f"{test.better} : {test.worse}"


def test_counts_add_up_and_the_target_has_no_retention(data: ReportData) -> None:
    found = section(data, "transitions")
    names = ("retained", "forgotten", "learned", "never known")
    assert sum(int(cell(found, name, task="webq", run="peft")) for name in names) == N
    assert cell(found, "retention", task="gsm8k (target)", run="imsm") == "target"
    assert cell(found, "retention", task="webq", run="imsm").endswith(" %")
    assert cell(found, "retention", task="mrpc", run="imsm") == "undefined"


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
