"""The paper code's metrics: each known defect, and how the strict metrics differ."""

from __future__ import annotations

import numpy
import pytest
from sklearn.metrics import f1_score, matthews_corrcoef

from imsm.data.tasks import cola, gsm8k, mrpc, ropes, webq
from imsm.evaluation.metrics import accuracy as accuracy_metric
from imsm.evaluation.metrics import aggregate, contain, exact_match, f1, mcc, paper_code, token_f1


@pytest.mark.parametrize(
    ("text", "reference"),
    [
        ("I do not know", "no"),  # no is a substring of not
        ("it is 15", "5"),
        ("Group B", "Group A"),  # the article A is dropped, and group is in group b
        ("yesterday", "yes"),
    ],
)
def test_contain_matches_substrings(text: str, reference: str) -> None:
    assert paper_code.contain.score(text, [reference]) == 1
    assert contain.score(text, [reference]) == 0


def test_both_contain_metrics_agree_on_a_plain_answer() -> None:
    for module in (paper_code.contain, contain):
        assert module.score("He lived in New York.", ["new york"]) == 1
        assert module.score("He lived in York.", ["new york"]) == 0
        assert module.score("Paris", ["london", "paris"]) == 1


def test_exact_match_compares_the_complete_response() -> None:
    raw = " yes\nInput: another pair"
    assert paper_code.exact_match.score(raw, ["yes"]) == 0
    assert accuracy_metric.score(mrpc.extract(raw), ["yes"]) == 1
    for module in (paper_code.exact_match, exact_match):
        assert module.score("The Arvel.", ["arvel"]) == 1


def test_a_decimal_point_is_lost() -> None:
    assert paper_code.exact_match.score("1.5", ["15"]) == 1
    assert exact_match.score("1.5", ["15"]) == 0


def test_anything_but_yes_counts_as_no() -> None:
    references = [["no"], ["no"], ["yes"]]
    predicted = ["", "maybe", "yes"]
    assert aggregate(paper_code.mcc, predicted, references) == 1.0
    assert aggregate(mcc, [cola.extract(text) for text in predicted], references) < 1.0
    assert aggregate(paper_code.f1, predicted, references) == 1.0
    unparsed = [mrpc.extract(text) for text in ("", "maybe", "not yes")]
    assert aggregate(paper_code.f1, ["", "maybe", "not yes"], references) == 1.0
    assert aggregate(f1, unparsed, references) == 0.0


def test_token_f1_counts_words_once() -> None:
    prediction, reference = "red red red blue", "red blue"
    assert paper_code.token_f1.score(prediction, [reference]) == 1.0
    assert token_f1.score(ropes.extract(prediction), [reference]) == pytest.approx(2 * 2 / (4 + 2))
    assert paper_code.token_f1.score("", ["red"]) == 0.0


def test_contain_rewards_long_responses() -> None:
    raw = "Paris or London or Rome or Madrid"
    assert paper_code.contain.score(raw, ["rome"]) == contain.score(webq.extract(raw), ["rome"]) == 1
    assert exact_match.score(webq.extract(raw), ["rome"]) == 0


def test_gsm8k_accuracy_ignores_the_rationale() -> None:
    gold = ["He packs 6*8=48 jars. The answer is 2,125."]
    raw = "Six times eight is 48.\nThe answer is 2125.\nBelow is a math question."
    assert paper_code.gsm8k_accuracy.score(raw, gold) == 1
    assert paper_code.exact_match.score(raw, gold) == 0  # what the paper's code compares
    assert paper_code.gsm8k_accuracy.score("The answer is 125.", gold) == 0
    assert gsm8k.extract(raw) == "2125"


@pytest.mark.parametrize("seed", range(3))
def test_f1_and_mcc_equal_scikit_learn(seed: int) -> None:
    rng = numpy.random.default_rng(seed)
    words = numpy.array(["yes", "no", "Yes, they are", "nothing", "", "eye's", "eyes", "y.e.s"])
    predicted = list(rng.choice(words, 80))
    references = list(rng.choice(["yes", "no"], 80))
    guess = ["yes" in text.lower() for text in predicted]
    truth = [reference == "yes" for reference in references]
    accepted = [[reference] for reference in references]
    assert aggregate(paper_code.f1, predicted, accepted) == pytest.approx(f1_score(truth, guess))
    assert aggregate(paper_code.mcc, predicted, accepted) == pytest.approx(matthews_corrcoef(truth, guess))
