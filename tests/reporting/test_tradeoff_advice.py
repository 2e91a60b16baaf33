"""What is known of a target, and the recommendation under a constraint."""

from __future__ import annotations

import json
from typing import Any

import pytest

from imsm.evaluation.result import write_result
from imsm.evaluation.statistics.intervals import student_ci
from imsm.reporting.tradeoff_advice import Advice, Candidate, advice_table, advise, draw_advice, pareto_front
from imsm.reporting.tradeoff_advice import _recommend as recommend
from tests.reporting.factories import evaluate_on_other_examples, report_data, write_run, write_seed


def advice_of(runs: dict[str, Any], **constraint: Any) -> Advice:
    folder, record, _ = runs["imsm"]
    return advise(folder, record, runs_root=runs["root"], **{"keep": 95.0, "target_at_least": None} | constraint)


def candidate(label: str, targets: list[float], kept: list[float], *, stream: str = "tuned") -> Candidate:
    result = {"method": "peft", "identity": {"method": {"stream": stream}}, "evaluation": {"tasks": {}}}
    return Candidate(label=label, results=[result] * len(targets), targets=targets, kept=kept)


def test_every_run_and_baseline_is_a_candidate_with_the_reports_numbers(runs: dict[str, Any]) -> None:
    found = advice_of(runs)
    points = {point.label: point for point in report_data(runs)[1].points}
    for each in found.candidates:
        name = each.label.rpartition(": ")[2] if ": " in each.label else "imsm" if "imsm" in each.label else "peft"
        assert (each.target.estimate, each.retention.estimate) == (points[name].target, points[name].stability)
    assert len(found.candidates) == 4 and found.informative == ["webq", "freebaseqa"]
    assert found.candidates == sorted(found.candidates, key=lambda each: -each.target.estimate)


def test_seeds_share_a_candidate_with_an_interval(runs: dict[str, Any]) -> None:
    for seed in (1, 2):
        write_seed(runs, "peft", seed=seed)
    found = next(each for each in advice_of(runs).candidates if len(each.targets) == 3)
    assert found.target == student_ci(found.targets) and found.target.low < found.target.high
    table = advice_table(advice_of(runs))
    assert table.column("seeds").count("3") == 1
    # among these two runs, without the other seeds
    chosen = advice_of(runs, among={runs["peft"][0], runs["imsm"][0]})
    assert {len(each.targets) for each in chosen.candidates} == {1}
    alone = advice_of(runs, among={runs["imsm"][0]})
    assert all("imsm" in each.label for each in alone.candidates) and alone.candidates


def test_checkpoints_are_candidates_and_a_path(runs: dict[str, Any]) -> None:
    folder, record, _ = runs["peft"]
    path = []
    for step in (4, 8):
        at = json.loads(json.dumps(record))
        write_run(folder / "kept_checkpoints" / f"step-{step:08d}", at, 40 + step)
        path.append({"step": step, "tasks": at["evaluation"]["tasks"]})
    record["training"]["path"] = path
    write_result(folder, record)
    found = advice_of(runs)
    steps = [each for each in found.candidates if each.path_of is not None]
    assert sorted(each.label.rpartition(": ")[2] for each in steps) == ["step 4", "step 8"]
    assert {each.path_of for each in steps} == {"mini-lora-gsm8k-peft"}
    assert draw_advice(found).axes


def test_other_examples_are_left_out_and_named(runs: dict[str, Any]) -> None:
    evaluate_on_other_examples(runs, ["webq"])
    found = advice_of(runs)
    assert len(found.candidates) == 1 and len(found.left_out) == 3
    assert any(note.startswith("Left out") for note in advice_table(found).notes)


def test_the_highest_target_score_under_the_constraint_is_recommended() -> None:
    both = [candidate("a", [90.0], [80.0]), candidate("b", [70.0], [96.0]), candidate("c", [60.0], [99.0])]
    best, sentences = recommend(both, keep=95, target_at_least=None)
    assert best is both[1] and "one seed" in sentences[1]
    assert recommend(both, keep=70, target_at_least=None)[0] is both[0]


def test_at_an_equal_score_the_cheaper_one_is_recommended() -> None:
    two, one = candidate("two", [70.0], [99.0], stream="interwoven"), candidate("one", [70.0], [96.0])
    assert recommend([two, one], keep=95, target_at_least=None)[0] is one


@pytest.mark.parametrize(("floor", "nearest"), [(None, "b"), (80.0, "a")])
def test_if_nothing_satisfies_the_constraint_the_nearest_is_named(floor: float | None, nearest: str) -> None:
    both = [candidate("a", [90.0], [80.0]), candidate("b", [70.0], [94.0])]
    best, (sentence,) = recommend(both, keep=95, target_at_least=floor)
    assert best is None and sentence.startswith("Nothing keeps at least 95.0 %")
    assert f"by {nearest}, target" in sentence


def test_overlapping_and_uncertain_intervals_are_stated() -> None:
    both = [candidate("a", [90.0, 94.0], [94.0, 99.0]), candidate("b", [89.0, 93.0], [97.0, 97.5])]
    best, sentences = recommend(both, keep=95, target_at_least=None)
    assert best is both[0]
    assert "violate the constraint" in sentences[1] and sentences[2].endswith("from that of b.")


def test_an_upper_bound_is_neither_recommended_nor_on_the_front() -> None:
    oracle, real = candidate("oracle", [99.0], [100.0]), candidate("a", [90.0], [96.0])
    oracle.is_method = False
    assert recommend([oracle, real], keep=95, target_at_least=None)[0] is real
    assert pareto_front([oracle, real]) == [real]


def test_the_front_has_what_nothing_beats() -> None:
    a, b, c = candidate("a", [90.0], [80.0]), candidate("b", [70.0], [96.0]), candidate("c", [70.0], [90.0])
    assert pareto_front([a, b, c]) == [a, b]
