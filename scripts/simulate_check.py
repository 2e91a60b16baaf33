"""Simulate verdicts of `imsm check` on made results with a known truth, and count the false ones.

    python -m scripts.simulate_check --simulations 1000 --output benchmarks/results/check_simulations.md

Each row is a truth: several tests, each with a number of examples and the probabilities that an example gains or
loses. A PASS is false if a test lost the margin or more, a FAIL if none lost more than the margin; at exactly the
margin both are false. The last columns show a method that is often used instead: percentiles of the paired bootstrap,
without a correction for several tests.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy
from numpy.typing import NDArray

from imsm.evaluation.statistics.bootstrap import bootstrap_means, cluster_sums
from imsm.evaluation.statistics.verdict import PairCounts, Verdict, count_pairs, decide, pseudo_values

Generator = numpy.random.Generator
Array = NDArray[numpy.float64]
MARGIN = 2.0
SIZES = (30, 100, 200, 500, 1000)
"""Examples of the tests of a truth."""


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One test's data: repeated measurements, each as differences (N,) in points, and the counts of `decide`."""

    differences: Array
    groups: NDArray[numpy.int64] | None
    counts: Sequence[PairCounts]


@dataclass(frozen=True, kw_only=True)
class Truth:
    """A row of the table.

    ``draw`` draws one sample of each test. ``drops`` decides which verdicts are false: the largest true drop is
    "below", "at" or "beyond" the margin.
    """

    name: str
    drops: str
    draw: Callable[[Generator], list[Sample]]
    margin: float = MARGIN


@dataclass(frozen=True, kw_only=True)
class Rates:
    """Shares of verdicts, and of false ones of the simple bootstrap."""

    passed: float
    failed: float
    naive_passed: float
    naive_failed: float


def binary(size: int, *, gain: float, loss: float, rng: Generator) -> Sample:
    """Draw independent pairs of right and wrong answers."""
    return _sample(_changes(size, gain, loss, rng))


def clustered(size: int, *, gain: float, loss: float, same: float, rng: Generator) -> Sample:
    """Draw passages of 1 to 9 questions, of which a share ``same`` changes as its passage does."""
    groups = numpy.repeat(numpy.arange(size), rng.integers(1, 10, size))[:size]
    passages, own = _changes(size, gain, loss, rng), _changes(size, gain, loss, rng)
    return _sample(numpy.where(rng.random(size) < same, passages[groups], own), groups)


def fractional(size: int, *, small: float, loss: float, drop: float, rng: Generator) -> Sample:
    """Draw a score from 0 to 1: a share ``small`` changes by up to 20 points, ``loss`` of the examples lose all.

    ``drop`` is the true drop in points; the small changes make up the difference.
    """
    kind = rng.random(size)
    shift = -(drop - 100 * loss) / small
    changes = numpy.where(kind < small, rng.uniform(shift - 10, shift + 10, size), 0.0)
    return _sample(numpy.where(kind > 1 - loss, -100.0, changes))


def repeated(size: int, *, gain: float, loss: float, flips: float, rng: Generator) -> Sample:
    """Draw four generations of the answers, of which a share ``flips`` changes by chance."""
    base = _changes(size, gain, loss, rng)
    sets = [numpy.where(rng.random(size) < flips, -base, base) for _ in range(4)]
    return Sample(differences=sets[0], groups=None, counts=[count_pairs(each) for each in sets])


def correlation(size: int, *, table: Array, rng: Generator) -> Sample:
    """Draw labels with probabilities by reference, original and tuned label (2, 2, 2); the metric is Matthews'."""
    cells = rng.choice(8, size=size, p=table.ravel())
    reference, original, tuned = numpy.unravel_index(cells, table.shape)

    def difference(indices: NDArray[numpy.int64]) -> float:
        after, before = (matthews(reference[indices], labels[indices]) for labels in (tuned, original))
        return 100 * (after - before)

    values = pseudo_values(difference, items=size, kinds=list(cells))
    largest = max(
        (abs(_flipped(reference, tuned, int(first))) for first in numpy.unique(reference, return_index=True)[1]),
        default=2.0,
    )
    return _sample(values, largest=100 * size * largest)


def matthews(reference: NDArray[numpy.int64], labels: NDArray[numpy.int64]) -> float:
    """Return Matthews' correlation of labels 0 and 1; 0 where it is undefined."""
    table = numpy.bincount(2 * reference + labels, minlength=4).reshape(2, 2).astype(float)
    product = float(numpy.prod(table.sum(axis=0)) * numpy.prod(table.sum(axis=1)))
    return float(numpy.linalg.det(table)) / product**0.5 if product else 0.0


def simulate(truth: Truth, *, simulations: int, seed: int, naive: bool = True) -> Rates:
    """Return the shares of verdicts over simulations."""
    rng = numpy.random.default_rng(seed)
    verdicts, simple = [], []
    for _ in range(simulations):
        samples = truth.draw(rng)
        names = [str(index) for index in range(len(samples))]
        tests = dict(zip(names, (sample.counts for sample in samples), strict=True))
        verdicts.append(decide(tests, margins=dict.fromkeys(names, truth.margin))[0])
        simple.append(_bootstrap_verdict(samples, truth.margin, rng) if naive else None)
    return Rates(
        passed=verdicts.count(Verdict.PASS) / simulations,
        failed=verdicts.count(Verdict.FAIL) / simulations,
        naive_passed=simple.count(Verdict.PASS) / simulations,
        naive_failed=simple.count(Verdict.FAIL) / simulations,
    )


def truths() -> list[Truth]:
    """Return the rows of the table."""
    sizes = "30, 100, 200, 500, 1000"
    rows = [
        _pairs(f"no change, few pairs differ; {sizes} items", "below", gain=0.01, loss=0.01),
        _pairs("no change, few pairs differ; 4 tests of 1000 items", "below", gain=0.01, loss=0.01, sizes=(1000,) * 4),
        _pairs("no change, correlated pairs; 4 tests of 1000 items", "below", gain=0.05, loss=0.05, sizes=(1000,) * 4),
        _pairs(f"drop of 1 point; {sizes} items", "below", gain=0.02, loss=0.03),
    ]
    for size in SIZES:
        rows.append(_pairs(f"at the margin, losses only; {size} items", "at", gain=0, loss=0.02, sizes=(size,)))
    rows += [
        _pairs(f"at the margin, losses only; {sizes} items", "at", gain=0, loss=0.02),
        _pairs(f"at the margin, few gains; {sizes} items", "at", gain=0.01, loss=0.03),
        _pairs(f"at the margin, many pairs differ; {sizes} items", "at", gain=0.15, loss=0.17),
        _pairs("at the margin; one test of 150 items, losses only", "at", gain=0, loss=0.02, sizes=(150,)),
        _pairs("at the margin; one test of 2000 items", "at", gain=0.03, loss=0.05, sizes=(2000,)),
        _pairs("at the margin; 12 tests of 100 items", "at", gain=0.02, loss=0.04, sizes=(100,) * 12),
        Truth(name="one of 5 tests of 1000 items at the margin, the others unchanged", drops="at", draw=_one_at),
    ]
    for size, same, gain in ((300, 0.3, 0.02), (1000, 0.3, 0.1), (300, 0.9, 0.1), (1000, 0.9, 0.0), (1000, 0.9, 0.1)):
        rows.append(_passages("at the margin", "at", size=size, same=same, gain=gain, loss=gain + 0.02))
    rows.append(_passages("no change", "below", size=1000, same=0.3, gain=0.01, loss=0.01))
    for size, small, loss in ((30, 0.05, 0.018), (300, 0.4, 0.0), (300, 0.05, 0.018), (1000, 0.3, 0.01)):
        rows.append(_small_changes(size=size, small=small, loss=loss))
    rows += [_matthews(yes=yes, size=size) for yes in (0.5, 0.2) for size in (100, 300, 1000)]
    rows += [
        Truth(
            name="at the margin, 4 generations with a floor of 2 %; 1000 items",
            drops="at",
            draw=lambda rng: [repeated(1000, gain=0.03, loss=0.03 + 0.02 / 0.96, flips=0.02, rng=rng)],
        ),
        _pairs(f"drop of 4 points; {sizes} items", "beyond", gain=0.01, loss=0.05),
        _pairs(f"drop of 10 points; {sizes} items", "beyond", gain=0.01, loss=0.11),
    ]
    return rows


def _changes(size: int, gain: float, loss: float, rng: Generator) -> Array:
    """Draw 100, 0 and -100 points (N,)."""
    kind = rng.random(size)
    return 100.0 * (kind < gain) - 100.0 * (kind > 1 - loss)


def _sample(differences: Array, groups: NDArray[numpy.int64] | None = None, largest: float = 100.0) -> Sample:
    labels = None if groups is None else list(groups)
    return Sample(
        differences=differences, groups=groups, counts=[count_pairs(differences, groups=labels, largest=largest)]
    )


def _pairs(name: str, drops: str, *, gain: float, loss: float, sizes: Sequence[int] = SIZES) -> Truth:
    return Truth(
        name=name, drops=drops, draw=lambda rng: [binary(size, gain=gain, loss=loss, rng=rng) for size in sizes]
    )


def _passages(name: str, drops: str, *, size: int, same: float, gain: float, loss: float) -> Truth:
    # both examples of a pair change with their passage with a probability of `same`
    share = same**0.5
    return Truth(
        name=f"{name}, passages of 1 to 9 items, correlation {same}, {gain:.0%} gain; {size} items",
        drops=drops,
        draw=lambda rng: [clustered(size, gain=gain, loss=loss, same=share, rng=rng)],
    )


def _small_changes(*, size: int, small: float, loss: float) -> Truth:
    return Truth(
        name=f"at the margin, score from 0 to 1, {small:.0%} lose a little, {loss:.1%} all; {size} items",
        drops="at",
        draw=lambda rng: [fractional(size, small=small, loss=loss, drop=MARGIN, rng=rng)],
    )


def _one_at(rng: Generator) -> list[Sample]:
    losses = (0.03, 0.01, 0.01, 0.01, 0.01)
    return [binary(1000, gain=0.01, loss=loss, rng=rng) for loss in losses]


def _matthews(*, yes: float, size: int) -> Truth:
    """One test whose true drop of Matthews' correlation is the margin."""
    share = numpy.array([1 - yes, yes])
    table = numpy.zeros((2, 2, 2))
    for reference in (0, 1):
        right, wrong = reference, 1 - reference
        # 80 % right before; 6 % of these are lost, 3 % of the wrong ones are gained
        table[reference, right, right], table[reference, right, wrong] = 0.752, 0.048
        table[reference, wrong, wrong], table[reference, wrong, right] = 0.17, 0.03
        table[reference] *= share[reference]
    before, after = (_population(table.sum(axis=axis)) for axis in (2, 1))
    return Truth(
        name=f"at the margin, Matthews correlation, {yes:.0%} yes; {size} items",
        drops="at",
        draw=lambda rng: [correlation(size, table=table, rng=rng)],
        margin=100 * (before - after),
    )


def _population(table: Array) -> float:
    """Return Matthews' correlation of probabilities (reference, label)."""
    product = numpy.prod(table.sum(axis=0)) * numpy.prod(table.sum(axis=1))
    return float(numpy.linalg.det(table) / product**0.5)


def _flipped(reference: NDArray[numpy.int64], labels: NDArray[numpy.int64], index: int) -> float:
    changed = labels.copy()
    changed[index] = 1 - changed[index]
    return matthews(reference, changed) - matthews(reference, labels)


def _bootstrap_verdict(samples: Sequence[Sample], margin: float, rng: Generator) -> Verdict:
    passed, failed = [], []
    for sample in samples:
        sums, sizes = cluster_sums(sample.differences[:, None], None if sample.groups is None else list(sample.groups))
        means = bootstrap_means(sums, sizes, resamples=400, seed=int(rng.integers(2**31)))[:, 0]
        passed.append(numpy.quantile(means, 0.05) > -margin)
        failed.append(numpy.quantile(means, 0.95) < -margin)
    if any(failed):
        return Verdict.FAIL
    return Verdict.PASS if all(passed) else Verdict.INSUFFICIENT_EVIDENCE


def table(simulations: int, *, seed: int) -> str:
    """Return the table in Markdown."""
    error = 100 * (0.05 * 0.95 / simulations) ** 0.5
    lines = [
        "# False verdicts of `imsm check`",
        "",
        f"`python -m scripts.simulate_check --simulations {simulations} --seed {seed}`; a rate of 5 % has a standard "
        f"error of {error:.1f} points. *at the margin*: the true loss is exactly the margin (2 points; of Matthews' "
        "correlation its true loss), so that both verdicts are false. *bootstrap*: 90 % percentiles of the paired "
        "bootstrap over passages, without a correction for several tests.",
        "",
        "| truth | PASS | FAIL | insufficient | bootstrap: PASS | bootstrap: FAIL |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for truth in truths():
        rates = simulate(truth, simulations=simulations, seed=seed)
        false = {"below": (False, True), "at": (True, True), "beyond": (True, False)}[truth.drops]
        shares = [rates.passed, rates.failed, rates.naive_passed, rates.naive_failed]
        cells = [f"{share:.1%}{' (false)' if wrong else ''}" for share, wrong in zip(shares, false * 2, strict=True)]
        cells.insert(2, f"{1 - rates.passed - rates.failed:.1%}")
        lines.append(f"| {truth.name} | {' | '.join(cells)} |")
        print(f"{len(lines) - 6} {lines[-1]}", file=sys.stderr, flush=True)
    return "\n".join(lines) + "\n"


def main() -> None:
    """Simulate, print and write the table."""
    parser = argparse.ArgumentParser(description="Simulate verdicts of imsm check.")
    parser.add_argument("--simulations", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, help="write the table in Markdown")
    options = parser.parse_args()
    text = table(options.simulations, seed=options.seed)
    print(text)
    if options.output is not None:
        options.output.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
