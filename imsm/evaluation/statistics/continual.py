"""What a sequence of tasks left of each: backward and forward transfer, forgetting, performance.

    R: scores in points, (..., S+1, S) for S tasks learned in the columns' order
       R[0, j] the original on task j, R[i, j] the model after stage i on task j
    BWT  = 1/(S-1) sum_{j<S} (R[S, j] - R[j, j])                   Lopez-Paz and Ranzato (2017)
    FM_j = max_{1<=i<S} R[i, j] - R[S, j], for j < S               Chaudhry et al. (2018)
    OP   = 1/S sum_j R[S, j]
    FWT  = 1/(S-1) sum_{j>1} (R[j-1, j] - R[0, j])                 Lopez-Paz and Ranzato (2017)
    DG   = 1/K sum_k (R[S, k] - R[0, k]), K tasks never learned    as TRACE's (Wang et al., 2023)

Forward transfer is measured from the original, which can do a task before it learned any: there
is no random start here. All take a stack of matrices, such as a bootstrap makes.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Scores = NDArray[np.float64]


def backward_transfer(scores: Scores) -> Scores:
    """How much the tasks before the last one changed since they were learned (...); below 0: lost.

    Args:
        scores: R (..., S+1, S), S at least 2.

    Raises:
        ValueError: it has another shape.
    """
    count = _tasks(scores)
    learned = np.diagonal(scores[..., 1:, :], axis1=-2, axis2=-1)
    result: Scores = (scores[..., -1, :] - learned)[..., : count - 1].mean(axis=-1)
    return result


def forgetting(scores: Scores) -> Scores:
    """FM_j of each task but the last one (..., S-1): its best score so far, less what is left.

    Args:
        scores: R (..., S+1, S), S at least 2.

    Raises:
        ValueError: it has another shape.
    """
    count = _tasks(scores)
    best = scores[..., 1:count, : count - 1].max(axis=-2)
    result: Scores = best - scores[..., -1, : count - 1]
    return result


def overall_performance(scores: Scores) -> Scores:
    """The mean over all tasks after the last stage (...).

    Args:
        scores: R (..., S+1, S), S at least 2.

    Raises:
        ValueError: it has another shape.
    """
    _tasks(scores)
    result: Scores = scores[..., -1, :].mean(axis=-1)
    return result


def forward_transfer(scores: Scores) -> Scores:
    """How much the later tasks gained from others before their own turn (...).

    Args:
        scores: R (..., S+1, S), S at least 2.

    Raises:
        ValueError: it has another shape.
    """
    _tasks(scores)
    before = np.diagonal(scores[..., :-1, :], axis1=-2, axis2=-1)
    result: Scores = (before - scores[..., 0, :])[..., 1:].mean(axis=-1)
    return result


def general_change(scores: Scores) -> Scores:
    """How far the tasks that no stage learns are from the original at the end (...).

    Args:
        scores: of K such tasks (..., S+1, K), K at least 1, rows as in R.
    """
    result: Scores = (scores[..., -1, :] - scores[..., 0, :]).mean(axis=-1)
    return result


MEASURES = {
    "BWT": "backward transfer",
    "FM": "forgetting measure",
    "OP": "overall performance",
    "FWT": "forward transfer",
    "DG": "change of tasks never learned",
}
"""The measures by their short names."""


def all_measures(scores: Scores, *, learned: int) -> dict[str, Scores]:
    """Each measure by its short name (...); DG only where there are tasks that no stage learns.

    Args:
        scores: (..., S+1, S+K), the S tasks of the sequence first.
        learned: S.

    Raises:
        ValueError: R, the first S columns, has another shape.
    """
    square, others = scores[..., :learned], scores[..., learned:]
    found = {
        "BWT": backward_transfer(square),
        "FM": forgetting(square).mean(axis=-1),
        "OP": overall_performance(square),
        "FWT": forward_transfer(square),
    }
    return found | ({"DG": general_change(others)} if others.shape[-1] else {})


def _tasks(scores: Scores) -> int:
    stages, tasks = scores.shape[-2:]
    if tasks < 2 or stages != tasks + 1:
        raise ValueError(
            f"scores of shape {scores.shape}: needs a column for each of at least two tasks, and a "
            "row for the original and for each stage"
        )
    return tasks
