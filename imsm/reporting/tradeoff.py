"""The trade between learning and forgetting: plasticity and stability of arms and controls."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from imsm.evaluation.statistics.forgetting import (
    harmonic_mean,
    hypervolume,
    plasticity,
    retention_at_target,
    stability,
)
from imsm.reporting.paired_comparison import contrast, kept
from imsm.reporting.render.formatting import number, percent
from imsm.reporting.runs import CONTROL, ComparedRun

CURVES = {"logit_mix": ("λ", 0.0, 1.0), "adapter_scale": ("α", 1.0, 0.0)}
"""Swept controls: their value's letter, and the values at which they are PEFT and the original."""
ENDS = ("peft", "original")
"""The arms at which every sweep ends."""
OWN_ADAPTER = "tuned"
"""The control that is a run's own adapter alone."""


@dataclass(frozen=True, kw_only=True)
class TradeoffPoint:
    """An arm's place: the target's score in points, plasticity and stability in percent.

    ``control`` and ``value`` are a control's, None for an arm; ``whole``: no test lacks its items.
    """

    label: str
    method: str
    control: str | None
    value: float | None
    target: float | None
    plasticity: float | None
    stability: float | None
    whole: bool = True

    @property
    def has_position(self) -> bool:
        """Whether it has a place in the picture."""
        return self.target is not None and self.stability is not None

    @property
    def harmonic(self) -> float | None:
        """The harmonic mean of plasticity and stability."""
        return harmonic_mean(self.plasticity, self.stability)

    def cells(self) -> dict[str, str]:
        """Plasticity, stability and their mean as a card shows them; a dash where answers lack."""
        learned, kept_whole = self.target is not None, self.whole
        return {
            "plasticity": percent(self.plasticity) if learned else number(None),
            "stability": percent(self.stability) if kept_whole else number(None),
            "harmonic": percent(self.harmonic) if learned and kept_whole else number(None),
        }


@dataclass(frozen=True, kw_only=True)
class TradeoffCurve:
    """A swept control from PEFT to the original, in the order of the sweep."""

    control: str
    letter: str
    trades: list[TradeoffPoint]

    @property
    def area(self) -> float:
        """The hypervolume of its points over (0, 0).

        It is 1 for a point with PEFT's whole gain and all kept, and no bound: an arm may learn more
        than PEFT, or come out better on a test than the original.
        """
        points = [
            (trade.plasticity / 100, trade.stability / 100)
            for trade in self.trades
            if trade.plasticity is not None and trade.stability is not None
        ]
        return hypervolume(points)

    def stability_at(self, target: float) -> float | None:
        """The stability that the sweep reaches at a target score, in percent."""
        points = [
            (trade.target, trade.stability)
            for trade in self.trades
            if trade.target is not None and trade.stability is not None
        ]
        return retention_at_target(points, target)


def tradeoff_points(
    arms: Sequence[ComparedRun],
    controls: Sequence[ComparedRun],
    *,
    target: str | None,
    metrics: dict[str, str],
    forgetting: Sequence[str],
) -> list[TradeoffPoint]:
    """The places of all arms and controls; nothing without an original and PEFT.

    Args:
        arms: the original first.
        controls: of the run.
        target: the task that was learned.
        metrics: the headline of each task.
        forgetting: the tests that count for stability: no arm was trained on them.
    """
    by_method = {arm.method: arm for arm in arms}
    original, peft = by_method.get("original"), by_method.get("peft")
    if original is None or peft is None or target is None:
        return []
    before, learned = (_score(arm, target, metrics[target]) for arm in (original, peft))
    gain = contrast(peft, original, task=target, metric=metrics[target], marked=False)
    if gain is None or gain.difference.low <= 0:
        learned = None  # a share of nothing is no measure
    found = []
    for arm in [*arms, *controls]:
        score = _score(arm, target, metrics[target])
        answered = [kept(arm, original, task=task, metric=metrics[task], marked=False) for task in forgetting]
        retained = {each.task: each.retained for each in answered if each is not None}
        about = arm.result["config"].get("baseline") or {}
        # over fewer tests than the others stability would be another measure
        whole = len(retained) == len(forgetting)
        found.append(
            TradeoffPoint(
                label=arm.label,
                method=arm.method,
                control=about.get("name") if arm.method == CONTROL else None,
                value=about.get("value"),
                target=score,
                plasticity=_plasticity(score, before, learned),
                stability=stability(retained) if whole else None,
                whole=whole,
            )
        )
    return found


def tradeoff_curves(found: Sequence[TradeoffPoint]) -> list[TradeoffCurve]:
    """The swept controls that have places, each with its ends."""
    ends = {trade.method: trade for trade in found if trade.control is None}
    # of an interwoven run the controls mix its own adapter, which stands among them
    for trade in found:
        if trade.control == OWN_ADAPTER:
            ends["peft"] = trade
    made = []
    for control, (letter, at_peft, at_original) in CURVES.items():
        swept = [
            trade for trade in found if trade.control == control and trade.value is not None and trade.has_position
        ]
        if not swept or not all(name in ends and ends[name].has_position for name in ENDS):
            continue
        inside = sorted(swept, key=lambda trade: trade.value or 0.0, reverse=at_peft > at_original)
        inside = [trade for trade in inside if trade.value not in (at_peft, at_original)]
        line = [ends["peft"], *inside, ends["original"]]
        made.append(TradeoffCurve(control=control, letter=letter, trades=line))
    return made


def _plasticity(score: float | None, before: float | None, peft: float | None) -> float | None:
    if score is None or before is None or peft is None:
        return None
    return plasticity(score, original=before, peft=peft)


def _score(arm: ComparedRun, task: str, metric: str) -> float | None:
    value = arm.entry(task).get("metrics", {}).get(metric)
    return None if value is None else float(value)
