"""Resampling groups of examples."""

from __future__ import annotations

import numpy as np
import pandas
import pytest

from imsm.evaluation.statistics.bootstrap import bootstrap_means, cluster_ids, resample_scores, standard_error


def _frame(scores: list[float], groups: list[str | None]) -> pandas.DataFrame:
    index = pandas.Index([f"i{index}" for index in range(len(scores))], name="id")
    return pandas.DataFrame({"score.x": scores, "group": groups}, index=index)


def test_all_models_share_the_draws() -> None:
    """A model that is right where the other is wrong adds up to 100 in each draw."""
    right = [1.0, 0.0, 1.0, 1.0, 0.0, 0.0, 1.0, 0.0]
    frames = [_frame(values, [None] * 8) for values in (right, [1 - v for v in right])]
    drawn = resample_scores(frames, "score.x", resamples=400, generator=np.random.default_rng(3))
    assert drawn.sum(axis=1) == pytest.approx(100)
    # the spread of a mean of 8 draws from a fair coin
    assert drawn[:, 0].std() == pytest.approx(100 * (0.25 / 8) ** 0.5, rel=0.15)


def test_groups_are_drawn_as_a_unit() -> None:
    frame = _frame([1.0, 1.0, 1.0, 0.0, 0.0, 0.0], ["a", "a", "a", "b", "b", "b"])
    drawn = resample_scores([frame], "score.x", resamples=200, generator=np.random.default_rng(1))
    assert set(np.round(drawn[:, 0], 6)) == {0.0, 50.0, 100.0}


def test_other_statistics_are_computed_on_the_drawn_rows() -> None:
    frame = _frame([1.0, 0.0, 1.0, 1.0], [None] * 4)

    def mean(rows: pandas.DataFrame) -> float:
        return 100 * float(rows["score.x"].mean())

    one, other = (
        resample_scores([frame], how, resamples=50, generator=np.random.default_rng(5)) for how in (mean, "score.x")
    )
    assert one == pytest.approx(other)


def test_different_examples_are_rejected() -> None:
    frames = [_frame([1.0, 0.0], [None] * 2), _frame([1.0, 0.0, 1.0], [None] * 3)]
    with pytest.raises(ValueError, match="different examples"):
        resample_scores(frames, "score.x", resamples=5, generator=np.random.default_rng(0))


def test_unlabelled_examples_are_groups_of_their_own() -> None:
    assert cluster_ids(["b", None, "a", "b", float("nan")], 5).tolist() == [0, 2, 1, 0, 3]
    assert cluster_ids(None, 3).tolist() == [0, 1, 2]
    with pytest.raises(ValueError, match="2 groups for 3"):
        cluster_ids(["a", "b"], 3)


def test_draws_by_count_and_one_by_one_have_one_distribution(monkeypatch: pytest.MonkeyPatch) -> None:
    sums, sizes = np.arange(40, dtype=float)[:, None], np.ones(40)
    by_count = bootstrap_means(sums, sizes, resamples=4000, seed=0)
    monkeypatch.setattr("imsm.evaluation.statistics.bootstrap._MAX_DISTINCT", 0)
    one_by_one = bootstrap_means(sums, sizes, resamples=4000, seed=0)
    assert by_count.mean() == pytest.approx(one_by_one.mean(), abs=0.2)
    assert by_count.std() == pytest.approx(one_by_one.std(), rel=0.05)


def test_the_standard_error_is_that_of_independent_groups() -> None:
    values = np.array([0.0, 1.0, 1.0, 0.0, 1.0, 1.0])
    alone, count = standard_error(values, None)
    assert (alone, count) == (pytest.approx(values.std(ddof=1) / 6**0.5), 6)
    repeated, count = standard_error(np.repeat(values, 3), np.repeat(np.arange(6), 3).tolist())
    assert (repeated, count) == (pytest.approx(alone), 6)
    assert standard_error(values, ["one"] * 6) == (0.0, 1)
