"""Numbers as a report card writes them."""

from __future__ import annotations

from collections.abc import Sequence

from imsm.evaluation.statistics.significance import Interval


def interval(found: Interval, *, signed: bool = False) -> str:
    """An estimate with its bounds: ``61.3 [58.0, 64.5]``."""
    mark = "+" if signed else ""
    texts = [f"{value:{mark}.1f}" for value in (found.estimate, found.low, found.high)]
    return "{} [{}, {}]".format(*texts).replace("-", "−")


def number(value: float | None, *, places: int = 1) -> str:
    """A value, or a dash for none."""
    if value is None or value != value:
        return "–"
    return f"{value:.{places}f}".replace("-", "−")


def percent(value: float | None) -> str:
    """A share in percent, or that it is undefined."""
    return "undefined" if value is None else f"{number(value)} %"


def p_value(value: float | None) -> str:
    """A p-value to three places."""
    if value is None:
        return "–"
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def listed(names: Sequence[str]) -> str:
    """Names with commas, or nothing."""
    return ", ".join(names) if names else "nothing"
