"""Measures of a task sequence: backward and forward transfer, forgetting, overall performance.

    R: scores in points, (..., S+1, S) for S tasks learned in the order of the columns
       R[0, j] the original on task j, R[i, j] the model after stage i on task j
    BWT  = 1/(S-1) sum_{j<S} (R[S, j] - R[j, j])                   Lopez-Paz and Ranzato (2017)
    FM_j = max_{1<=i<S} R[i, j] - R[S, j], for j < S               Chaudhry et al. (2018)
    OP   = 1/S sum_j R[S, j]
    FWT  = 1/(S-1) sum_{j>1} (R[j-1, j] - R[0, j])                 Lopez-Paz and Ranzato (2017)
    DG   = 1/K sum_k (R[S, k] - R[0, k]), K tasks never learned    as TRACE's (Wang et al., 2023)

Forward transfer is measured from the original, which is not random. Every function accepts a stack of
matrices (leading dimensions ...), such as bootstrap resamples; those of R raise ValueError unless R has
S at least 2 columns and S+1 rows.
"""

import numpy as np
from numpy.typing import NDArray

Scores = NDArray[np.float64]

MEASURES = {
    "BWT": "backward transfer",
    "FM": "forgetting measure",
    "OP": "overall performance",
    "FWT": "forward transfer",
    "DG": "change of tasks never learned",
}
"""The measures by their abbreviations."""


def backward_transfer(scores: Scores) -> Scores:
    """Compute BWT (...): the change of earlier tasks since they were learned; negative if forgotten."""
    count = _num_tasks(scores)
    learned = np.diagonal(scores[..., 1:, :], axis1=-2, axis2=-1)
    result: Scores = (scores[..., -1, :] - learned)[..., : count - 1].mean(axis=-1)
    return result


def forgetting(scores: Scores) -> Scores:
    """Compute FM_j of each task but the last (..., S-1): its best score so far minus its final score."""
    count = _num_tasks(scores)
    # Without R[0] and R[S]: only scores after a training stage, and before the last.
    best = scores[..., 1:count, : count - 1].max(axis=-2)
    result: Scores = best - scores[..., -1, : count - 1]
    return result


def overall_performance(scores: Scores) -> Scores:
    """Compute OP (...): the mean over all tasks after the last stage."""
    _num_tasks(scores)
    result: Scores = scores[..., -1, :].mean(axis=-1)
    return result


def forward_transfer(scores: Scores) -> Scores:
    """Compute FWT (...): the gain of later tasks before they are learned."""
    _num_tasks(scores)
    before = np.diagonal(scores[..., :-1, :], axis1=-2, axis2=-1)
    result: Scores = (before - scores[..., 0, :])[..., 1:].mean(axis=-1)
    return result


def general_change(scores: Scores) -> Scores:
    """Compute DG (...) from the scores of K tasks never learned (..., S+1, K), K at least 1."""
    result: Scores = (scores[..., -1, :] - scores[..., 0, :]).mean(axis=-1)
    return result


def all_measures(scores: Scores, *, learned: int) -> dict[str, Scores]:
    """Return every measure (...) by its abbreviation; DG only if there are tasks never learned.

    ``scores`` is (..., S+1, S+K), with the S = ``learned`` tasks of the sequence first.
    """
    square, others = scores[..., :learned], scores[..., learned:]
    measures = {
        "BWT": backward_transfer(square),
        "FM": forgetting(square).mean(axis=-1),
        "OP": overall_performance(square),
        "FWT": forward_transfer(square),
    }
    return measures | ({"DG": general_change(others)} if others.shape[-1] else {})


def _num_tasks(scores: Scores) -> int:
    stages, tasks = map(int, scores.shape[-2:])
    if tasks < 2 or stages != tasks + 1:
        raise ValueError(
            f"scores of shape {scores.shape}: needs a column for each of at least two tasks, and a "
            "row for the original and for each stage"
        )
    return tasks
