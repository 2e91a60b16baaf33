"""The verdict on made runs: which tests count, what is refused, what is printed."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import pytest
from rich.console import Console

from imsm.evaluation.metrics import resolve_metric
from imsm.evaluation.predictions import FILE, task_dir, write_predictions
from imsm.evaluation.statistics.significance import holm
from imsm.evaluation.statistics.verdict import Verdict, count_pairs, p_above, p_below
from imsm.reporting.runs import ComparedRun
from imsm.reporting.verdict import AT_CHANCE, TRAINED_ON, check_run, render_check
from imsm.utils.errors import UserError


def write(
    folder: Path,
    answers: dict[str, list[str]],
    *,
    references: dict[str, list[str]],
    metrics: dict[str, str],
    trained_on: tuple[str, ...] = (),
    group: int = 1,
) -> ComparedRun:
    """Write predictions with these answers by task; the first task is the target."""
    tasks = {}
    for task, texts in answers.items():
        module = resolve_metric(metrics[task])
        rows = [
            {
                **dict.fromkeys(("prompt", "prompt_hash", "response"), "x"),
                **dict.fromkeys(("reference_loglik", "reference_tokens", "gate_mean"), None),
                **dict.fromkeys(("gate_per_token", "token_texts"), None),
                **{"id": f"{task}/{number}", "group": f"{task}/{number // group}", "tokens": 1, "ended": True},
                **{"answer": text, "references": [gold], "scores": {metrics[task]: module.score(text, [gold])}},
            }
            for number, (text, gold) in enumerate(zip(texts, references[task], strict=True))
        ]
        sha256 = write_predictions(task_dir(folder, task=task, test_set="0" * 8), rows)
        tasks[task] = {
            "role": "target" if task == "gsm8k" else "forgetting",
            "trained_on": task in trained_on,
            "test_set": "0" * 8,
            "headline": metrics[task],
            "num_examples": len(texts),
            "metrics": {metrics[task]: 100 * float(numpy.mean([row["scores"][metrics[task]] for row in rows]))},
            "predictions_sha256": sha256,
        }
    result = {"method": folder.name, "config": {"metrics": {}}, "evaluation": {"tasks": tasks}}
    return ComparedRun(label=folder.name, result=result, folder=folder)


def changed(items: int, right: int, gains: int, losses: int) -> tuple[list[str], list[str]]:
    """The answers of the original, ``right`` of them right, and of the run."""
    before = ["paris"] * right + ["rome"] * (items - right)
    after = ["rome"] * losses + before[losses : items - gains] + ["paris"] * gains
    return before, after


def pair(folder: Path, tests: dict[str, tuple[int, int, int, int]], **options: Any) -> tuple[ComparedRun, ComparedRun]:
    """A run and its original with answers as by `changed`."""
    found = {task: changed(*values) for task, values in tests.items()}
    references = {task: ["paris"] * len(before) for task, (before, _) in found.items()}
    metrics = dict.fromkeys(found, "contain")
    before, after = ({task: each[index] for task, each in found.items()} for index in (0, 1))
    original = write(folder / "original", before, references=references, metrics=metrics)
    return write(folder / "run", after, references=references, metrics=metrics, **options), original


def test_verdict_and_numbers_are_those_of_the_statistics(tmp_path: Path) -> None:
    tests = {"gsm8k": (50, 10, 30, 0), "webq": (300, 200, 4, 30), "freebaseqa": (600, 500, 3, 4)}
    found = check_run(pair(tmp_path, tests), margin=2.0)
    assert found.verdict is Verdict.FAIL and [test.task for test in found.tests] == ["webq", "freebaseqa"]
    counts = {
        task: count_pairs([100.0] * gains + [-100.0] * losses + [0.0] * (items - gains - losses))
        for task, (items, _, gains, losses) in tests.items()
        if task != "gsm8k"
    }
    adjusted = holm({task: p_below(each, 2.0) for task, each in counts.items()})
    for test in found.tests:
        assert test.decision.p_fail == adjusted[test.task]
        assert test.decision.p_pass == p_above(counts[test.task], 2.0)
        assert test.low < test.decision.estimate < test.high
    assert [test.decision.verdict for test in found.tests] == [Verdict.FAIL, Verdict.PASS]


@pytest.mark.parametrize(
    ("required", "verdict"),
    [(None, Verdict.PASS), (60.0, Verdict.PASS), (80.0, Verdict.INSUFFICIENT_EVIDENCE), (95.0, Verdict.FAIL)],
)
def test_a_required_target_score_is_part_of_the_verdict(
    tmp_path: Path, required: float | None, verdict: Verdict
) -> None:
    runs = pair(tmp_path, {"gsm8k": (50, 10, 30, 0), "webq": (600, 500, 3, 4)})
    found = check_run(runs, margin=2.0, target_at_least=required)
    assert found.verdict is verdict
    if required is not None:
        target = found.tests[-1]
        assert (target.task, target.required, target.score) == ("gsm8k", required, 80.0)
        assert 60 < target.low < 80 < target.high < 95
        assert (target.low > required) == (verdict is Verdict.PASS)


def test_uninformative_and_learned_tests_do_not_count(tmp_path: Path) -> None:
    tests = {"gsm8k": (50, 10, 30, 0), "webq": (300, 0, 0, 0), "freebaseqa": (300, 290, 0, 200)}
    runs = pair(tmp_path, tests, trained_on=("freebaseqa",))
    found = check_run(runs, margin=2.0)
    assert found.not_counted == {"webq": AT_CHANCE, "freebaseqa": TRAINED_ON}
    assert found.verdict is Verdict.INSUFFICIENT_EVIDENCE and not found.tests
    # a good target does not show that nothing was forgotten, a bad one is a failure
    assert check_run(runs, margin=2.0, target_at_least=50.0).verdict is Verdict.INSUFFICIENT_EVIDENCE
    assert check_run(runs, margin=2.0, target_at_least=99.0).verdict is Verdict.FAIL


def test_correlations_are_judged_in_their_own_unit(tmp_path: Path) -> None:
    references = {"cola": ["yes", "no"] * 400}
    verdicts = []
    for flipped in (0, 2, 80):
        before = list(references["cola"])
        after = [{"yes": "no", "no": "yes"}[text] if index < flipped else text for index, text in enumerate(before)]
        before[-80:] = ["yes"] * 80
        after[-80:] = ["yes"] * 80
        folder = tmp_path / str(flipped)
        original, run = (
            write(folder / name, {"cola": texts}, references=references, metrics={"cola": "mcc"})
            for name, texts in (("original", before), ("run", after))
        )
        (test,) = check_run((run, original), margin=3.0).tests
        verdicts.append(test.decision.verdict)
        statistic = resolve_metric("mcc").aggregate  # type: ignore[attr-defined]
        golds = [[gold] for gold in references["cola"]]
        change = 100 * (statistic(after, golds) - statistic(before, golds))
        assert test.decision.estimate == pytest.approx(change, abs=0.1)
    assert verdicts == [Verdict.PASS, Verdict.PASS, Verdict.FAIL]


def test_passages_count_as_one(tmp_path: Path) -> None:
    tests = {"gsm8k": (50, 10, 30, 0), "webq": (400, 300, 0, 0)}
    assert check_run(pair(tmp_path / "a", tests), margin=2.0).verdict is Verdict.PASS
    grouped = check_run(pair(tmp_path / "b", tests, group=10), margin=2.0)
    assert grouped.verdict is Verdict.INSUFFICIENT_EVIDENCE
    (test,) = grouped.tests
    assert test.needed is not None and test.needed > 400


def test_repeats_widen_the_result_and_measure_the_floor(tmp_path: Path) -> None:
    runs = pair(tmp_path / "a", {"gsm8k": (50, 10, 30, 0), "webq": (300, 200, 0, 0)})
    again = pair(tmp_path / "b", {"gsm8k": (50, 10, 30, 0), "webq": (300, 200, 0, 6)})
    once = check_run(runs, margin=2.0)
    found = check_run(runs, margin=2.0, repeats=[again, runs])
    assert once.verdict is Verdict.PASS and found.verdict is Verdict.INSUFFICIENT_EVIDENCE
    assert once.tests[0].floor is None and found.tests[0].floor == pytest.approx(6 / 300)
    assert found.tests[0].low < once.tests[0].low and found.tests[0].high == once.tests[0].high


@pytest.mark.parametrize(
    ("damage", "text"),
    [
        (lambda path: path.write_text(path.read_text().replace("rome", "paris")), "changed since its result was"),
        (lambda path: path.unlink(), "predictions.jsonl"),
        (lambda path: path.write_bytes(b"\xff"), "predictions.jsonl"),
    ],
)
@pytest.mark.parametrize("who", ["run", "original"])
def test_damaged_predictions_are_refused(tmp_path: Path, who: str, damage: Callable[[Path], Any], text: str) -> None:
    runs = pair(tmp_path, {"gsm8k": (50, 10, 30, 0), "webq": (300, 200, 0, 0)})
    damage(task_dir(tmp_path / who, task="webq", test_set="0" * 8) / FILE)
    with pytest.raises(UserError, match=text):
        check_run(runs, margin=2.0)


def test_other_examples_and_a_missing_target_are_refused(tmp_path: Path) -> None:
    run, _ = pair(tmp_path / "a", {"webq": (300, 200, 0, 0)})
    _, original = pair(tmp_path / "b", {"webq": (200, 200, 0, 0)})
    with pytest.raises(UserError, match="other examples"):
        check_run((run, original), margin=2.0)
    with pytest.raises(UserError, match="target of this run was not evaluated"):
        check_run(pair(tmp_path / "c", {"webq": (300, 200, 0, 0)}), margin=2.0, target_at_least=50.0)


@pytest.mark.parametrize(
    ("available", "text"), [(None, "not known here"), (5000, "enough"), (61, "too few"), (60, "too few")]
)
def test_the_output_says_how_many_examples_would_decide(tmp_path: Path, available: int | None, text: str) -> None:
    found = check_run(pair(tmp_path, {"webq": (60, 50, 0, 0), "mrpc": (60, 0, 0, 0)}), margin=2.0)
    stream = io.StringIO()
    render_check(found, available={"webq": available}, console=Console(file=stream, width=200))
    printed = stream.getvalue()
    assert printed.startswith("INSUFFICIENT_EVIDENCE: run is undecided on webq")
    assert "+0.0 [−4.9, +4.9]" in printed and text in printed and f"not counted: mrpc: {AT_CHANCE}" in printed
    assert ("evaluation.limit_by_task={webq:" in printed) == (available == 5000)
    assert found.to_json({"webq": available})["tests"]["webq"]["items_available"] == available
