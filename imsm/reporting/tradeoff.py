"""Trade-off between learning and forgetting: plasticity and stability."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from imsm.evaluation.statistics.forgetting import (
    harmonic_mean,
    hypervolume,
    plasticity,
    retention_at_target,
    stability,
)
from imsm.reporting.render.formatting import MISSING, format_percent
from imsm.reporting.runs import BASELINE, ComparedRun, Result

SWEEPS = {"logit_mix": ("λ", 0.0, 1.0), "adapter_scale": ("α", 1.0, 0.0)}
"""Swept baselines: the symbol of their value, its value at PEFT and at the original."""
OWN_ADAPTER = "tuned"
"""The baseline that uses an interwoven run's adapter alone."""
_TWO_STREAMS = (
    *("logit_mix", "probability_mix", "entropy_mix", "max_confidence", "constant_gate", "gate_skip"),
    "seed_ensemble",
)
"""Baselines that read two streams, or two adapters, for each token."""
_NOT_COMPETING = (OWN_ADAPTER, "oracle_router")


@dataclass(frozen=True, kw_only=True)
class TradeoffPoint:
    """The target score in points, and plasticity and stability in percent, of a run.

    ``baseline`` and ``value`` are a swept baseline's, None for a run; ``complete``: the predictions of
    every forgetting test could be loaded.
    """

    label: str
    method: str
    baseline: str | None
    value: float | None
    target: float | None
    plasticity: float | None
    stability: float | None
    complete: bool = True

    @property
    def has_position(self) -> bool:
        """Whether the point can be drawn."""
        return self.target is not None and self.stability is not None

    def cells(self) -> dict[str, str]:
        """Return plasticity, stability and harmonic mean as text."""
        evaluated = self.target is not None
        harmonic = harmonic_mean(self.plasticity, self.stability)
        return {
            "plasticity": format_percent(self.plasticity) if evaluated else MISSING,
            "stability": format_percent(self.stability) if self.complete else MISSING,
            "harmonic mean": format_percent(harmonic) if evaluated and self.complete else MISSING,
        }


@dataclass(frozen=True, kw_only=True)
class TradeoffCurve:
    """A swept baseline from PEFT to the original, in the order of the sweep."""

    baseline: str
    symbol: str
    points: list[TradeoffPoint]

    @property
    def hypervolume(self) -> float:
        """Hypervolume over (0, 0); 1 is PEFT's full gain with full retention.

        It can exceed 1: a run may learn more than PEFT or beat the original on a forgetting test.
        """
        both = [(p.plasticity, p.stability) for p in self.points]
        return hypervolume([(one / 100, other / 100) for one, other in both if one is not None and other is not None])

    @property
    def positions(self) -> list[tuple[float, float]]:
        """Target score and stability of the points that have both."""
        return [(p.target, p.stability) for p in self.points if p.target is not None and p.stability is not None]

    def stability_at(self, target: float) -> float | None:
        """Return the stability in percent that the sweep reaches at a target score."""
        return retention_at_target(self.positions, target)


def tradeoff_points(
    runs: Sequence[ComparedRun],
    retained: Sequence[Mapping[str, float | None]],
    *,
    target: str,
    metric: str,
    forgetting: Sequence[str],
    peft_gained: bool,
) -> list[TradeoffPoint]:
    """Return the points of runs and baselines, which include the original.

    ``retained`` holds for each run its retention by test of ``forgetting``; tests without predictions are absent.
    ``peft_gained``: whether the 95 % interval of PEFT's gain on the target is above 0. Otherwise plasticity is
    undefined, because a share of no gain means nothing.
    """
    scores = {run.method: run.score(target, metric) for run in runs if run.method != BASELINE}
    before, tuned = scores["original"], scores.get("peft") if peft_gained else None
    points = []
    for run, retained_by_task in zip(runs, retained, strict=True):
        score = run.score(target, metric)
        settings = run.result["config"].get("baseline") or {}
        # a mean over fewer tests than the other runs would be a different measure
        complete = len(retained_by_task) == len(forgetting)
        gain_share = None
        if score is not None and before is not None and tuned is not None:
            gain_share = plasticity(score, original=before, peft=tuned)
        points.append(
            TradeoffPoint(
                label=run.label,
                method=run.method,
                baseline=settings.get("name") if run.method == BASELINE else None,
                value=settings.get("value"),
                target=score,
                plasticity=gain_share,
                stability=stability(retained_by_task) if complete else None,
                complete=complete,
            )
        )
    return points


def streams_per_token(result: Result) -> float:
    """Return the mean number of forward passes per generated token: 2 of two streams, 1 of one.

    Queries whose gate is decided continue with one stream (`gate.skip`).
    """
    interwoven = result["identity"]["method"]["stream"] == "interwoven"
    if result["method"] == BASELINE:
        interwoven = result["config"]["baseline"]["name"] in _TWO_STREAMS
    if not interwoven:
        return 1.0
    counts = [entry["decided"] for entry in result["evaluation"]["tasks"].values() if entry.get("decided")]
    both, total = sum(count.get("both", 0) for count in counts), sum(sum(count.values()) for count in counts)
    return 1 + both / total if total else 2.0


def matching_baselines(points: Sequence[TradeoffPoint], curves: Sequence[TradeoffCurve]) -> dict[str, list[str]]:
    """Return the baselines at least as good as each trained run beyond PEFT, by its label; runs without are absent.

    A swept baseline is as good if it retains as much at the run's target score, another one if neither its
    target score nor its stability is lower. The upper bound and the adapter alone do not count.
    """
    found: dict[str, list[str]] = {}
    for run in points:
        if run.baseline is not None or run.method in ("original", "peft") or not run.has_position:
            continue
        assert run.target is not None and run.stability is not None
        names = [
            curve.baseline.replace("_", " ")
            for curve in curves
            if (retained := curve.stability_at(run.target)) is not None and retained >= run.stability
        ]
        names += [
            point.label
            for point in points
            if point.baseline is not None
            and point.baseline not in (*SWEEPS, *_NOT_COMPETING)
            and point.target is not None
            and point.stability is not None
            and point.target >= run.target
            and point.stability >= run.stability
        ]
        if names:
            found[run.label] = names
    return found


def tradeoff_curves(points: Sequence[TradeoffPoint]) -> list[TradeoffCurve]:
    """Return the curves of swept baselines, each from PEFT to the original."""
    ends = {point.method: point for point in points if point.baseline is None}
    # an interwoven run's baselines mix its own adapter, not that of the PEFT run
    ends |= dict([("peft", point) for point in points if point.baseline == OWN_ADAPTER])
    if not all(name in ends and ends[name].has_position for name in ("peft", "original")):
        return []
    curves = []
    for baseline, (symbol, at_peft, at_original) in SWEEPS.items():
        swept = [p for p in points if p.baseline == baseline and p.value is not None and p.has_position]
        if not swept:
            continue
        # a sweep's end is the PEFT run or the original itself, up to rounding
        inside = [point for point in swept if point.value not in (at_peft, at_original)]
        inside.sort(key=lambda point: point.value or 0.0, reverse=at_peft > at_original)
        curves.append(
            TradeoffCurve(baseline=baseline, symbol=symbol, points=[ends["peft"], *inside, ends["original"]])
        )
    return curves
