"""The metrics of the paper's released code, reproduced with their known defects.

They score the raw response; the metric modules next to this one score the extracted answer. `contain`
matches substrings ("no" in "not"), `exact_match` the complete response including what follows the
answer, `token_f1` sets of words; for `f1` and `mcc` a text without the letters "yes" is a no, with punctuation:
"eyes" is a yes, "eye's" a no.
"""

from collections.abc import Callable, Sequence

from imsm.data.tasks import gsm8k
from imsm.evaluation.metrics import gsm8k_accuracy as strict_gsm8k
from imsm.evaluation.metrics.base import Metric, MetricInfo
from imsm.evaluation.metrics.labels import f1_score, matthews_correlation
from imsm.evaluation.metrics.text import normalize_paper_code


def _contain(prediction: str, references: Sequence[str]) -> float:
    text = normalize_paper_code(prediction)
    return float(any(normalize_paper_code(reference) in text for reference in references))


def _exact_match(prediction: str, references: Sequence[str]) -> float:
    return float(normalize_paper_code(prediction) in map(normalize_paper_code, references))


def _token_f1(prediction: str, references: Sequence[str]) -> float:
    words = set(normalize_paper_code(prediction).split())
    return max(_set_f1(words, set(normalize_paper_code(reference).split())) for reference in references)


def _set_f1(words: set[str], wanted: set[str]) -> float:
    shared = len(words & wanted)
    return 2 * shared / (len(words) + len(wanted)) if shared else 0.0


def _gsm8k_accuracy(prediction: str, references: Sequence[str]) -> float:
    # The one deviation: the paper's code searches for a mark that neither its data nor its prompts contain.
    return strict_gsm8k.score(gsm8k.extract(prediction), references)


def _is_yes(text: str) -> bool:
    return "yes" in text.lower()


def _label_score(prediction: str, references: Sequence[str]) -> float:
    return float(_is_yes(prediction) == _is_yes(references[0]))


def _f1(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    return f1_score([_is_yes(r[0]) for r in references], [_is_yes(p) for p in predictions], label=True)


def _mcc(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    return matthews_correlation([_is_yes(r[0]) for r in references], [_is_yes(p) for p in predictions])


def _metric(
    name: str,
    meaning: str,
    score: Callable[[str, Sequence[str]], float],
    aggregate: Callable[[Sequence[str], Sequence[Sequence[str]]], float] | None = None,
) -> Metric:
    info = MetricInfo(name=f"paper_code_{name}", meaning=f"{meaning} (the paper's code)")
    return Metric(INFO=info, score=score, aggregate=aggregate)


contain = _metric(
    "contain", "fraction of examples whose raw response contains an accepted answer as a substring", _contain
)
exact_match = _metric(
    "exact_match", "fraction of examples whose complete raw response equals an accepted answer", _exact_match
)
f1 = _metric("f1", "F1 of the label yes, where any text without the letters yes is a no", _label_score, _f1)
gsm8k_accuracy = _metric(
    "gsm8k_accuracy",
    "fraction of examples whose extracted number is correct; the original scorer does not work",
    _gsm8k_accuracy,
)
mcc = _metric("mcc", "Matthews correlation, where any text without the letters yes is a no", _label_score, _mcc)
token_f1 = _metric("token_f1", "F1 of the sets of words of the raw response and the accepted answer", _token_f1)
