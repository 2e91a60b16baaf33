"""The benchmark's page: its table in Markdown and its plots."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from scripts.bench.result import row_cells

if TYPE_CHECKING:
    from matplotlib.axes import Axes

STYLES = {"IMSM": ("#0072b2", "o"), "IMSM, no cache": ("#56b4e9", "s"), "our PEFT": ("#e69f00", "d")}
"""Colour and marker of each method in every plot; other names are variants of IMSM."""
HEAD = ["", "ours", "theirs", "", "ratio", "bar", ""]


def write_page(path: Path, record: dict[str, Any]) -> Path:
    """Write `<name>.md` next to the JSON file, and its plots if matplotlib is installed.

    Args:
        path: the JSON file.
        record: its content.

    Returns:
        The page's path.
    """
    lines = [
        f"# Benchmark: {record['device']}",
        "",
        f"{record['date'][:10]}, commit {record['commit'] or 'unknown'}, "
        + ", ".join(f"{name} {version}" for name, version in record["versions"].items()),
        "",
        "Ratios of ours to theirs, measured in one run: steps and decoding alternate and are medians; "
        "start-up is a median; the rest is sequential. Unless a row states otherwise: "
        + ", ".join(f"{key} {value}" for key, value in record["settings"].items())
        + ".",
        "",
        "| " + " | ".join(HEAD) + " |",
        "|:---|---:|---:|:---|---:|---:|:---|",
        *("| " + " | ".join(row_cells(row)) + " |" for row in record["comparisons"]),
        "",
    ]
    for row in record["comparisons"]:
        if row["reason"]:
            lines += [f"{row['name']}: {row['reason']}", ""]
    for each in record["left_out"]:
        lines += [f"Skipped: {each['name']}, which needs {each['needs']}.", ""]
    for name in _draw(path.with_suffix(""), record):
        lines += [f"![{name}]({path.stem}/{name}.svg)", ""]
    page = path.with_suffix(".md")
    page.write_text("\n".join(lines), encoding="utf-8")
    return page


def _draw(folder: Path, record: dict[str, Any]) -> list[str]:
    """Draw all plots as `<name>.svg` and return their names."""
    try:
        import matplotlib
    except ImportError:
        return []
    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "imsm"
    from matplotlib.figure import Figure

    folder.mkdir(exist_ok=True)
    names = []
    barred = [row for row in record["comparisons"] if row["bar"] is not None]
    if barred:
        figure = Figure(figsize=(8, 0.42 * len(barred) + 1.2), layout="constrained")
        _bars(figure.subplots(), barred)
        figure.savefig(folder / "bars.svg", metadata={"Date": None})
        names.append("bars")
    for number, curve in enumerate(record["curves"], start=1):
        figure = Figure(figsize=(6, 3.6), layout="constrained")
        _curve(figure.subplots(), curve)
        name = f"curve{number}"
        figure.savefig(folder / f"{name}.svg", metadata={"Date": None})
        names.append(name)
    return names


def _bars(axes: Axes, rows: list[dict[str, Any]]) -> None:
    """Plot each ratio as a share of its bar: below 1 is better for upper and lower bounds."""
    shares = [r["bar"] / r["ratio"] if r["at_least"] else r["ratio"] / r["bar"] for r in rows]
    colours = ["#2c7fb8" if row["met"] else "#d95f0e" for row in rows]
    places = range(len(rows), 0, -1)
    axes.barh(places, shares, color=colours, height=0.6)
    axes.axvline(1, color="black", linewidth=1)
    axes.set_yticks(list(places), [row["name"] for row in rows], fontsize=7)
    axes.set_xlabel("share of the bar (left of the line: met)")
    for place, share, row in zip(places, shares, rows, strict=True):
        box = {"facecolor": "white", "edgecolor": "none", "pad": 0.5}
        at = share + 0.02
        axes.text(at, place, f"{row['ratio']:.2f}", va="center", fontsize=7, bbox=box)
    axes.set_xlim(0, max(1.15, 1.15 * max(shares)))
    axes.spines[["top", "right"]].set_visible(False)


def _curve(axes: Axes, curve: dict[str, Any]) -> None:
    for name, seconds in curve["variants"].items():
        colour, marker = STYLES.get(name, STYLES["IMSM"])
        axes.plot(curve["at"], seconds, marker=marker, color=colour, label=name)
    if curve["floor"]:
        label = f"floor: {curve['floor_of']}"
        axes.plot(curve["at"], curve["floor"], color="grey", linestyle="--", label=label)
    axes.set_xlabel(curve["over"])
    axes.set_ylabel("seconds")
    axes.set_title(curve["name"], fontsize=10)
    axes.set_xlim(left=0)
    axes.set_ylim(bottom=0)
    axes.legend(fontsize=7, frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
