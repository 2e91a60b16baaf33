"""Every metric of `conf/metric`, found by name."""

from __future__ import annotations

import pytest

from imsm.evaluation.metrics import resolve_metric
from imsm.utils.errors import UserError
from imsm.utils.options import list_options


def test_every_metric_is_shipped_and_described() -> None:
    strict = ["accuracy", "contain", "exact_match", "f1", "gsm8k_accuracy", "mcc", "token_f1"]
    paper_code = [f"paper_code_{name}" for name in strict if name != "accuracy"]
    assert list_options("metric") == sorted([*strict, *paper_code, "question_exact_match"])
    for name in list_options("metric"):
        info = resolve_metric(name).INFO
        assert info.name == name
        assert info.meaning and info.higher_is_better and info.scale == 100.0


def test_a_metric_is_found_inside_a_module() -> None:
    assert resolve_metric("imsm.evaluation.metrics.paper_code.mcc") is resolve_metric("paper_code_mcc")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("exact_mach", "metric=exact_mach: .*did you mean exact_match"),
        ("string", "metric=string: .*--config-dir"),
        ("imsm.evaluation.metrics.paper_code.missing", "metric=.*missing: cannot be found"),
        ("imsm.evaluation.metrics.base", "lacks INFO and score"),
        ("", "metric=: "),
    ],
)
def test_an_unknown_metric_is_rejected(name: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        resolve_metric(name)
