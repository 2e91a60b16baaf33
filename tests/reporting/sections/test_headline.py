"""The sentence at the top of a report."""

from __future__ import annotations

import json
from typing import Any

from imsm.evaluation.statistics.intervals import macro_average_ci
from imsm.reporting.render.formatting import format_interval
from imsm.reporting.report import build_report
from imsm.reporting.report_data import ReportData, build_report_data
from imsm.reporting.sections.headline import build_headline
from tests.helpers.config import result
from tests.reporting.factories import cell, data_of, section, three_results


def test_the_sentence_states_what_each_run_gained_and_lost(data: ReportData) -> None:
    sentence, chance, *_ = build_headline(data)
    first, second = sentence.rstrip(".").split("; ")
    overview = section(data, "overview")
    gained = cell(overview, "peft − original", task="gsm8k (target)").removeprefix("+")
    lost = cell(overview, "peft − original", task="average")
    assert first.startswith(f"LoRA gained {gained} points on gsm8k and changed by {lost} [")
    assert first.endswith(" on average over webq and freebaseqa")
    assert second.startswith(f"IMSM gained {cell(overview, 'imsm − original', task='gsm8k (target)')[1:]} and ")
    assert chance == "The original is at chance on multirc and mrpc, which no average includes."


def test_a_change_that_may_be_zero_has_its_interval(data: ReportData) -> None:
    imsm = build_headline(data)[0].rstrip(".").split("; ")[1]
    pairs = [each for each in data.comparisons if (each.run, each.reference) == ("imsm", "original")]
    found = {each.task: each.difference for each in pairs}
    mean = macro_average_ci([found["webq"], found["freebaseqa"]], tests=["webq", "freebaseqa"])
    assert mean.low < 0 < mean.high
    expected = format_interval(mean.estimate, mean.low, mean.high, signed=True)
    assert imsm.endswith(f" and changed by {expected}")


def test_without_predictions_the_scores_are_enough() -> None:
    assert build_headline(data_of(three_results())) == [
        "LoRA lost 7.7 points on gsm8k and lost 7.7 on average over webq, freebaseqa, multirc and mrpc; "
        "IMSM lost 2.2 and lost 2.2."
    ]


def test_a_gate_on_a_frozen_adapter_keeps_a_share_of_its_gain(data: ReportData) -> None:
    fitted = json.loads(json.dumps(data.focus.result))
    fitted["identity"]["frozen_adapter"] = {}
    again = build_report_data(
        [*data.runs[:-1], type(data.focus)(label="imsm", result=fitted, folder=data.focus.folder)]
    )
    share = {point.label: point.plasticity for point in again.points}["imsm"]
    assert share is not None
    assert f"; a gate fitted afterwards kept {share:.0f} % of the gain and " in build_headline(again)[0]


def test_two_gates_keep_their_labels() -> None:
    original, peft, mean = three_results()
    sentence = build_headline(data_of([original, peft, result("imsm", "gate.pooling=max", points=30.0), mean]))[0]
    assert "; IMSM (query r8 pooling=max) lost 20.0 and lost 20.0; IMSM (query r8 pooling=mean) lost 2.2" in sentence


def test_a_report_opens_with_a_readable_name(shared_runs: dict[str, Any]) -> None:
    folder, record, _ = shared_runs["imsm"]
    report = build_report(folder, record, runs_root=shared_runs["root"])
    assert (report.title, report.run) == ("IMSM with lora on gsm8k", record["name"])
    folder, record, _ = shared_runs["original"]
    report = build_report(folder, record, runs_root=shared_runs["root"])
    assert report.title == "mini before training" and report.headline[0].startswith("Scores in points: ")


def test_a_baseline_that_is_as_good_is_in_the_headline(data: ReportData) -> None:
    assert data.matches == {} or "Training-free baselines match it" in build_headline(data)[-1]
    alone = build_report_data(data.runs)
    assert alone.matches == {} and not any("Training-free" in text for text in build_headline(alone))
