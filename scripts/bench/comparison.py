"""Rows of a benchmark: ours against theirs, with a bar that was set beforehand."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """One row.

    ``bar`` bounds the ratio of ours to theirs from above, or from below with ``at_least``; None: no
    bar. ``floor``: the machine cannot meet the bar, for the measured ``reason``.
    """

    name: str
    ours: float
    theirs: float
    unit: str
    bar: float | None = None
    at_least: bool = False
    floor: bool = False
    reason: str | None = None

    @property
    def ratio(self) -> float:
        """Ours over theirs."""
        return self.ours / self.theirs

    @property
    def met(self) -> bool | None:
        """Whether the ratio meets the bar; None without a bar."""
        if self.bar is None:
            return None
        return self.ratio >= self.bar if self.at_least else self.ratio <= self.bar

    def record(self) -> dict[str, Any]:
        """Return the row as stored in the JSON file."""
        return {
            "name": self.name,
            "ours": _rounded(self.ours),
            "theirs": _rounded(self.theirs),
            "unit": self.unit,
            "ratio": _rounded(self.ratio),
            "bar": self.bar,
            "at_least": self.at_least,
            "met": self.met,
            "floor": self.floor,
            "reason": self.reason,
        }


def _rounded(value: float) -> float:
    return float(f"{value:.4g}")
