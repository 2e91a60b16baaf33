"""A finished run's report, left in its folder and shown: texts, tables, pictures, one page."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from imsm.reporting.render.table import provenance_of, render_markdown, render_terminal, title_of
from imsm.reporting.runs import build_comparison_set
from imsm.reporting.score_table import compare
from imsm.utils.files import write_atomic


def write_report(folder: Path, result: Mapping[str, Any], *, runs_root: Path) -> None:
    """Write `report.md`, `report.html`, `tables/` and `figures/`, and print the card.

    Beside the run stand the original, finished runs that differ from it in nothing but the method,
    the controls that were judged on it, and what its seeds have in common. Items that are not
    whole are told on stderr too.

    Args:
        folder: of the run.
        result: its own.
        runs_root: where the original and the other runs lie.

    Raises:
        OSError: the folder cannot be written.
        UserError: the result tells nothing of its original.
    """
    from imsm.reporting.render.html import render_page, write_pictures, write_tables
    from imsm.reporting.report_data import build_report_data
    from imsm.reporting.sections.order import build_sections

    beside = build_comparison_set(folder, result, runs_root=runs_root)
    sections = build_sections(build_report_data(beside.arms, beside.controls, beside.seeds))
    results = [arm.result for arm in beside.arms]
    told = [*beside.excluded, *beside.load_errors]
    pictures = write_pictures(folder, sections)
    write_tables(folder, sections)
    write_atomic(folder / "report.md", render_markdown(results, sections=sections, told=told))
    card = compare(results)
    page = render_page(
        title=str(result["name"]),
        subtitle=title_of(card),
        notes=[*card.notes, *told],
        sections=sections,
        pictures=pictures,
        provenance=provenance_of(result),
    )
    write_atomic(folder / "report.html", page)
    render_terminal(results, sections=sections, told=beside.excluded)
    for damage in beside.load_errors:
        print(f"imsm: {damage}", file=sys.stderr)
    print(f"report: {folder / 'report.html'} (and report.md, tables/, figures/ beside it)")
