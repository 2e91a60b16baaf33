"""Format numbers, intervals and p-values as report text."""

from collections.abc import Mapping, Sequence
from typing import Any

MISSING = "–"
QUANTIZED_ORIGINAL = "The original model of all comparisons is the quantized one, not the published weights."


def backbone_label(config: Mapping[str, Any]) -> str:
    """Return the name of a run's backbone, with its quantization, e.g. "llama3 in 4 bits (nf4)"."""
    backbone = config["backbone"]
    quantization = backbone.get("quantization")
    return str(backbone["name"]) + (f" in 4 bits ({quantization})" if quantization is not None else "")


def format_interval(estimate: float, low: float, high: float, *, signed: bool = False) -> str:
    """Return an estimate with its bounds, e.g. ``61.3 [58.0, 64.5]``."""
    return "{} [{}, {}]".format(*(format_number(value, signed=signed) for value in (estimate, low, high)))


def format_number(value: float | None, *, digits: int = 1, signed: bool = False) -> str:
    """Return a rounded number; a dash for None and NaN."""
    # NaN is the only number that differs from itself
    if value is None or value != value:
        return MISSING
    # the minus sign U+2212 is as wide as the plus sign
    return f"{value:{'+' if signed else ''}.{digits}f}".replace("-", "−")


def format_percent(value: float | None) -> str:
    """Return a percentage, or "undefined" for None."""
    return "undefined" if value is None else f"{format_number(value)} %"


def format_p_value(value: float | None) -> str:
    """Return a p-value with three decimals, e.g. ``0.042`` or ``< 0.001``."""
    if value is None:
        return MISSING
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def join_names(names: Sequence[str]) -> str:
    """Return names separated by commas, or "none"."""
    return ", ".join(names) or "none"


def format_provenance(result: Mapping[str, Any]) -> list[str]:
    """Return versions, commit and fingerprints of a result, one per line."""
    git = result["git"]
    lines = [f"{name} {version}" for name, version in result["versions"].items()]
    if git is not None:
        lines.append(f"commit {git['commit']}{', with uncommitted changes' if git['dirty'] else ''}")
    return lines + [f"{name} {value}" for name, value in result["fingerprints"].items()]
