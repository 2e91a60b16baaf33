"""Metrics against worked examples, scikit-learn and an independent SQuAD evaluation."""

from __future__ import annotations

import math
import random
import re
import string
from types import ModuleType

import pytest
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

from imsm.evaluation.metrics import aggregate, contain, exact_match, gsm8k_accuracy, resolve_metric, token_f1
from imsm.utils.errors import UserError
from tests.helpers.paths import ROOT

CONF = ROOT / "conf" / "metric"
NAMES = sorted(path.stem for path in CONF.glob("*.yaml"))


def test_the_metrics_are_there_and_say_what_they_mean() -> None:
    clean = ["accuracy", "contain", "exact_match", "f1", "gsm8k_accuracy", "mcc", "token_f1"]
    released = ["contain", "exact_match", "f1", "gsm8k_accuracy", "mcc", "token_f1"]
    assert sorted(clean + [f"released_{name}" for name in released]) == NAMES
    for name in NAMES:
        info = resolve_metric(name).INFO
        assert info.name == name
        assert info.meaning and info.higher_is_better and info.scale == 100.0


def test_an_unknown_metric_names_the_nearest() -> None:
    with pytest.raises(UserError, match=r"no metric 'exact_mach'.* Did you mean exact_match\?"):
        resolve_metric("exact_mach")
    with pytest.raises(UserError, match="string is no metric: it lacks INFO and score"):
        resolve_metric("string")


# --- yes/no ---------------------------------------------------------------------------------------


def labels(count: int, seed: int) -> tuple[list[str], list[str]]:
    draw = random.Random(seed)
    return draw.choices(["yes", "no"], k=count), draw.choices(["yes", "no"], [3, 1], k=count)


@pytest.mark.parametrize("seed", range(5))
def test_yes_or_no_metrics_equal_scikit_learn(seed: int) -> None:
    predicted, right = labels(60, seed)
    golds = [[label] for label in right]
    wordings = {"yes": ["Yes.", "yes", " YES, they do"], "no": ["no", "No!", "no, not at all"]}
    worded = [wordings[label][number % 3] for number, label in enumerate(predicted)]
    assert aggregate(resolve_metric("accuracy"), worded, golds) == pytest.approx(accuracy_score(right, predicted))
    assert aggregate(resolve_metric("f1"), worded, golds) == pytest.approx(f1_score(right, predicted, pos_label="yes"))
    assert aggregate(resolve_metric("mcc"), worded, golds) == pytest.approx(matthews_corrcoef(right, predicted))


def test_mcc_and_f1_by_hand() -> None:
    predicted = ["yes"] * 6 + ["no"] * 4
    golds = [["yes"]] * 4 + [["no"]] * 2 + [["no"]] * 3 + [["yes"]]
    true_yes, false_yes, true_no, false_no = 4, 2, 3, 1
    mcc = (true_yes * true_no - false_yes * false_no) / math.sqrt(6 * 5 * 5 * 4)
    assert aggregate(resolve_metric("mcc"), predicted, golds) == pytest.approx(mcc)
    f1 = 2 * true_yes / (2 * true_yes + false_yes + false_no)
    assert aggregate(resolve_metric("f1"), predicted, golds) == pytest.approx(f1)
    assert aggregate(resolve_metric("accuracy"), predicted, golds) == pytest.approx(0.7)


@pytest.mark.parametrize("unparsed", ["", "maybe", "not at all", "I know, yes", "yesterday"])
def test_an_unparsed_answer_is_wrong_whatever_the_gold(unparsed: str) -> None:
    for gold in ("yes", "no"):
        for name in ("accuracy", "f1", "mcc"):
            assert resolve_metric(name).score(unparsed, [gold]) == 0.0
    golds = [["yes"], ["yes"], ["no"], ["no"]]
    right = ["yes", "yes", "no", "no"]
    assert aggregate(resolve_metric("accuracy"), [unparsed, *right[1:]], golds) == 0.75
    assert aggregate(resolve_metric("f1"), [unparsed, *right[1:]], golds) == pytest.approx(2 / 3)
    assert 0 < aggregate(resolve_metric("mcc"), [unparsed, *right[1:]], golds) < 1
    for name in ("accuracy", "f1", "mcc"):
        assert aggregate(resolve_metric(name), [unparsed] * 4, golds) == 0.0


def test_one_answer_to_everything_has_no_correlation() -> None:
    assert aggregate(resolve_metric("mcc"), ["yes"] * 3, [["yes"], ["no"], ["yes"]]) == 0.0
    assert aggregate(resolve_metric("f1"), ["no"] * 2, [["no"], ["no"]]) == 0.0


def test_yes_or_no_metrics_refuse_other_golds() -> None:
    for name in ("accuracy", "f1", "mcc"):
        with pytest.raises(UserError, match=r"'a town' is neither yes nor no.*data\.metric="):
            aggregate(resolve_metric(name), ["yes"], [["a town"]])


# --- SQuAD ----------------------------------------------------------------------------------------


def squad_normal(text: str) -> str:
    """Lower, marks deleted, articles to a blank, blanks squeezed, one step after the other."""
    text = "".join(ch for ch in text.lower() if ch not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


def squad_f1(prediction: str, gold: str) -> float:
    left, right = squad_normal(prediction).split(), squad_normal(gold).split()
    rest, shared = list(right), 0
    for word in left:
        if word in rest:
            rest.remove(word)
            shared += 1
    if not left or not right:
        return float(left == right)
    if not shared:
        return 0.0
    precision, recall = shared / len(left), shared / len(right)
    return 2 * precision * recall / (precision + recall)


WORDS = ["The", "a", "an", "cat", "Cat's", "cat", "well-known", "U.S.", "2,125", "dog,", "(dog)", "é"]


@pytest.mark.parametrize("seed", range(200))
def test_exact_match_and_token_f1_are_squads(seed: int) -> None:
    draw = random.Random(seed)

    def text() -> str:
        return " ".join([*draw.choices(WORDS, k=draw.randrange(4)), draw.choice(WORDS[3:])])

    prediction, golds = text(), [text() for _ in range(draw.randrange(1, 4))]
    normal = [squad_normal(gold) for gold in golds]
    assert exact_match.score(prediction, golds) == float(squad_normal(prediction) in normal)
    assert token_f1.score(prediction, golds) == pytest.approx(max(squad_f1(prediction, gold) for gold in golds))


@pytest.mark.parametrize(
    ("prediction", "golds", "right"),
    [
        ("the Arvel", ["Arvel"], 1),
        ("Arvel.", ["arvel"], 1),
        ("2125", ["2,125"], 1),
        ("1.5", ["15"], 0),
        ("1.5", ["1.5"], 1),
        ("15.", ["15"], 1),
        ("Group B", ["Group A"], 0),
        ("", ["A"], 0),
        ("A", ["A"], 1),
        ("Lowmere", ["Port Senn", "Lowmere"], 1),
        ("Port Senn and Lowmere", ["Port Senn", "Lowmere"], 0),
    ],
)
def test_exact_match_by_example(prediction: str, golds: list[str], right: int) -> None:
    assert exact_match.score(prediction, golds) == right


def test_token_f1_by_example() -> None:
    assert token_f1.score("the old port", ["Old Port Senn"]) == pytest.approx(0.8)
    assert token_f1.score("port port", ["port"]) == pytest.approx(2 / 3)
    assert token_f1.score("Lowmere", ["Port Senn", "Lowmere town"]) == pytest.approx(2 / 3)
    assert token_f1.score("1.5", ["15"]) == 0.0
    assert token_f1.score("", ["port"]) == 0.0


# --- contain --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prediction", "golds", "held"),
    [
        ("It is Port Senn, I think", ["port senn"], 1),
        ("It is Port of Senn", ["port senn"], 0),
        ("there are 15", ["5"], 0),
        ("there are 5.", ["5"], 1),
        ("1.5 litres", ["5"], 0),
        ("1.5 litres", ["15"], 0),
        ("1.5 litres", ["1.5"], 1),
        ("in 2,125 cases", ["2125"], 1),
        ("in 2125 cases", ["2,125"], 1),
        ("in 2,125 cases", ["125"], 0),
        ("I do not know", ["no"], 0),
        ("no, I do not", ["no"], 1),
        ("Group B", ["Group A"], 0),
        ("it was Group A.", ["Group A"], 1),
        ("Group A grows", ["Group A"], 1),
        ("Sample B, a good one", ["Sample A"], 0),
        ("Arvel", ["The Arvel"], 1),
        ("the Arvel's mouth", ["Arvel"], 1),
        ("a Lowmere-born man", ["Lowmere"], 1),
        ("the US army", ["U.S."], 1),
        ("the U.S. army", ["US"], 1),
        ("\u201cLowmere\u201d", ["Lowmere"], 1),
        ("Lowmere", ["Port Senn", "Lowmere"], 1),
        ("answer A", ["A"], 1),
        ("", ["A"], 0),
        ("!", ["?"], 0),
    ],
)
def test_contain_is_bounded_by_words(prediction: str, golds: list[str], held: int) -> None:
    assert contain.score(prediction, golds) == held


# --- GSM8K ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prediction", "gold", "right"),
    [
        ("18", "3*6=18\nThe answer is 18.", 1),
        ("3*6=18\nThe answer is 18.", "The answer is 18.", 1),
        ("2125", "The answer is 2,125.", 1),
        ("The answer is 2,125.", "The answer is 2125.", 1),
        ("2.125", "The answer is 2,125.", 0),
        ("The answer is $18.00", "The answer is 18.", 1),
        ("1.5", "The answer is 15.", 0),
        ("15", "The answer is 5.", 0),
        ("-5", "The answer is 5.", 0),
        ("3/2", "The answer is 1.5.", 1),
        ("1/0", "The answer is 1.", 0),
        ("so it is 18 in all", "The answer is 18.", 1),
        ("", "The answer is 18.", 0),
        ("eighteen", "The answer is 18.", 0),
    ],
)
def test_gsm8k_accuracy_compares_numbers(prediction: str, gold: str, right: int) -> None:
    assert gsm8k_accuracy.score(prediction, [gold]) == right


def test_gsm8k_accuracy_refuses_a_gold_without_a_number() -> None:
    with pytest.raises(UserError, match="without a number"):
        gsm8k_accuracy.score("1", ["none"])


# --- all ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("module", [exact_match, token_f1, contain, gsm8k_accuracy])
def test_the_mean_is_the_default_aggregate(module: ModuleType) -> None:
    assert aggregate(module, ["5", "6", "7", "8"], [["5"], ["5"], ["7"], ["5", "8"]]) == 0.75


def test_nothing_to_score_and_unequal_counts_are_refused() -> None:
    for predictions, golds in ([], []), (["a"], [["a"], ["b"]]):
        with pytest.raises(UserError, match="exact_match needs at least one prediction"):
            aggregate(exact_match, predictions, golds)
