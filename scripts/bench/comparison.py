"""A benchmark's rows: ours beside theirs, against a bar that was set beforehand."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """One row.

    ``bar`` bounds the ratio of ours to theirs: from above, or with ``at_least`` from below. None:
    no bar is set. ``floor``: the machine forbids the bar, for the measured ``reason``.
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
        """Whether the ratio keeps to the bar; None without one."""
        if self.bar is None:
            return None
        return self.ratio >= self.bar if self.at_least else self.ratio <= self.bar

    def record(self) -> dict[str, Any]:
        """As the JSON file keeps it."""
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
