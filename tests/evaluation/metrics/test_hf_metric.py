"""Metrics on their own, as the evaluate library's users use them; and one of one's own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from imsm.evaluation.metrics import load
from imsm.evaluation.scoring import score_predictions
from imsm.utils.errors import UserError
from tests.helpers.paths import ROOT

OWN = '''"""Length."""
from imsm.evaluation.metrics import MetricInfo

INFO = MetricInfo(name="letters", meaning="length", higher_is_better=False, scale=1.0)


def score(prediction, golds):
    return float(len(prediction) - len(golds[0]))
'''


@pytest.fixture
def own_metric(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "letters_metric.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    return "letters_metric"


def test_compute_takes_lists_of_accepted_answers() -> None:
    predictions, references = ["yes", "no", "no"], [["yes"], ["no"], ["yes"]]
    assert load("mcc").compute(predictions=predictions, references=references) == {"mcc": pytest.approx(0.5)}
    several = load("contain")
    assert several.name == "contain"
    assert several.compute(predictions=["in Lowmere"], references=[["Port Senn", "Lowmere"]]) == {"contain": 1.0}


def test_items_may_be_added_one_by_one_and_in_batches() -> None:
    metric = load("exact_match")
    metric.add(prediction="a town", reference=["town", "village"])
    metric.add_batch(predictions=["hill", "b"], references=[["town"], ["B."]])
    assert metric.compute() == {"exact_match": pytest.approx(2 / 3)}
    metric.add(prediction="x", reference=["y"])
    assert metric.compute() == {"exact_match": 0.0}


def test_two_at_once_do_not_mix() -> None:
    one, other = load("exact_match"), load("exact_match")
    one.add(prediction="a b", reference=["b"])
    other.add(prediction="c", reference=["b"])
    assert (one.compute(), other.compute()) == ({"exact_match": 1.0}, {"exact_match": 0.0})


def test_a_metric_of_ones_own_by_its_module(own_metric: str) -> None:
    result = load(own_metric).compute(predictions=["abc", "a"], references=[["a"], ["a"]])
    assert result == {"letters": 1.0}
    totals, items = score_predictions([own_metric], ["abc", "a"], [["a"], ["a"]])
    assert (totals, items) == ({"letters": 1.0}, [{"letters": 2.0}, {"letters": 0.0}])


def test_nothing_is_written(tmp_path: Path) -> None:
    code = (
        "from imsm.evaluation.metrics import load\n"
        "print(load('f1').compute(predictions=['yes'], references=[['yes']]))\n"
    )
    home, work = tmp_path / "home", tmp_path / "work"
    home.mkdir()
    work.mkdir()
    root = ROOT
    run = subprocess.run(
        [sys.executable, "-c", code],
        cwd=work,
        env={"HOME": str(home), "PATH": "/usr/bin:/bin", "PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert run.stdout.strip() == "{'f1': 1.0}"
    assert list(work.iterdir()) == []
    assert [path for path in home.rglob("*") if path.is_file()] == []


def test_score_answers_gives_points_and_items() -> None:
    answers, golds = ["yes", "no", ""], [["yes"], ["yes"], ["no"]]
    totals, items = score_predictions(["accuracy", "f1"], answers, golds)
    assert list(totals) == ["accuracy", "f1"]
    assert totals == {"accuracy": pytest.approx(100 / 3), "f1": pytest.approx(200 / 3)}
    assert items == [{"accuracy": score, "f1": score} for score in (1.0, 0.0, 0.0)]


@pytest.mark.parametrize("name", ["accuracy", "f1", "mcc", "exact_match", "token_f1", "contain"])
def test_score_answers_equals_the_metric_on_its_own(name: str) -> None:
    answers, golds = ["yes", "no way", "No", "yes"], [["yes"], ["no"], ["yes"], ["no"]]
    totals, _ = score_predictions([name], answers, golds)
    alone = load(name).compute(predictions=answers, references=golds)
    assert alone is not None
    assert totals[name] == pytest.approx(100 * alone[name])


def test_score_answers_refuses_unequal_counts() -> None:
    with pytest.raises(UserError, match="1 predictions and 2 lists"):
        score_predictions(["contain"], ["a"], [["a"], ["b"]])


def test_score_answers_refuses_two_metrics_of_one_name() -> None:
    with pytest.raises(UserError, match="same name: f1, f1"):
        score_predictions(["f1", "imsm.evaluation.metrics.f1"], ["yes"], [["yes"]])
