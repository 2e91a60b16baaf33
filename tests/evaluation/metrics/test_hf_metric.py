"""Metrics as `evaluate.Metric`, and a custom metric."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from imsm.evaluation.metrics import load
from imsm.evaluation.scoring import score_predictions
from imsm.utils.trust import trust_folder
from tests.helpers.paths import ROOT

CUSTOM = '''"""Length."""
from imsm.evaluation.metrics import MetricInfo

INFO = MetricInfo(name="letters", meaning="length", higher_is_better=False, scale=1.0)


def score(prediction, references):
    return float(len(prediction) - len(references[0]))
'''


@pytest.fixture
def custom_metric(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "letters_metric.py").write_text(CUSTOM)
    monkeypatch.setattr(sys, "path", list(sys.path))
    trust_folder(tmp_path)
    return "letters_metric"


def test_compute_takes_lists_of_accepted_answers() -> None:
    predictions, references = ["yes", "no", "no"], [["yes"], ["no"], ["yes"]]
    assert load("mcc").compute(predictions=predictions, references=references) == {"mcc": pytest.approx(0.5)}
    several = load("contain")
    assert several.name == "contain"
    assert several.compute(predictions=["in Lowmere"], references=[["Port Senn", "Lowmere"]]) == {"contain": 1.0}


def test_examples_can_be_added_one_by_one_and_in_batches() -> None:
    metric = load("exact_match")
    metric.add(prediction="a town", reference=["town", "village"])
    metric.add_batch(predictions=["hill", "b"], references=[["town"], ["B."]])
    assert metric.compute() == {"exact_match": pytest.approx(2 / 3)}
    metric.add(prediction="x", reference=["y"])
    assert metric.compute() == {"exact_match": 0.0}


def test_two_instances_are_independent() -> None:
    one, other = load("exact_match"), load("exact_match")
    one.add(prediction="a b", reference=["b"])
    other.add(prediction="c", reference=["b"])
    assert (one.compute(), other.compute()) == ({"exact_match": 1.0}, {"exact_match": 0.0})


def test_a_custom_metric_is_named_by_its_module(custom_metric: str) -> None:
    result = load(custom_metric).compute(predictions=["abc", "a"], references=[["a"], ["a"]])
    assert result == {"letters": 1.0}
    totals, scores = score_predictions([custom_metric], ["abc", "a"], [["a"], ["a"]])
    assert (totals, scores) == ({"letters": 1.0}, [{"letters": 2.0}, {"letters": 0.0}])


def test_no_file_is_written(tmp_path: Path) -> None:
    code = (
        "from imsm.evaluation.metrics import load\n"
        "print(load('f1').compute(predictions=['yes'], references=[['yes']]))\n"
    )
    home, work = tmp_path / "home", tmp_path / "work"
    home.mkdir()
    work.mkdir()
    run = subprocess.run(
        [sys.executable, "-c", code],
        cwd=work,
        env={"HOME": str(home), "PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert run.stdout.strip() == "{'f1': 1.0}"
    assert list(work.iterdir()) == []
    assert [path for path in home.rglob("*") if path.is_file()] == []
