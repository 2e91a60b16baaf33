"""The default aggregate of a metric."""

from __future__ import annotations

from types import ModuleType

import pytest

from imsm.evaluation.metrics import (
    aggregate,
    contain,
    exact_match,
    f1,
    gsm8k_accuracy,
    is_mean_of_scores,
    paper_code,
    question_exact_match,
    token_f1,
)
from imsm.utils.errors import UserError


@pytest.mark.parametrize("module", [exact_match, token_f1, contain, gsm8k_accuracy])
def test_the_mean_is_the_default_aggregate(module: ModuleType) -> None:
    assert aggregate(module, ["5", "6", "7", "8"], [["5"], ["5"], ["7"], ["5", "8"]]) == 0.75


def test_no_predictions_and_unequal_counts_are_rejected() -> None:
    for predictions, references in ([], []), (["a"], [["a"], ["b"]]):
        with pytest.raises(UserError, match=r"exact_match: .*at least one prediction"):
            aggregate(exact_match, predictions, references)


def test_only_statistics_of_the_set_have_an_aggregate() -> None:
    assert is_mean_of_scores(exact_match) and is_mean_of_scores(paper_code.contain)
    assert (
        not is_mean_of_scores(f1)
        and not is_mean_of_scores(question_exact_match)
        and not is_mean_of_scores(paper_code.mcc)
    )
