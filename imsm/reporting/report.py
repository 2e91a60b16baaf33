"""Write the report of a finished run: report.md, report.html, tables and figures."""

import io
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from imsm.config.identity import is_imported
from imsm.reporting.render.document import Report, Section
from imsm.reporting.render.formatting import backbone_label, format_provenance
from imsm.reporting.render.html import render_html
from imsm.reporting.render.markdown import render_markdown
from imsm.reporting.render.terminal import print_report
from imsm.reporting.report_data import ReportData, build_report_data
from imsm.reporting.runs import build_comparison_set
from imsm.reporting.sections.headline import build_headline
from imsm.reporting.sections.order import build_sections
from imsm.utils.control_characters import escape_controls
from imsm.utils.files import write_atomic

_DPI = 130


def write_report(folder: Path, result: Mapping[str, Any], *, runs_root: Path) -> None:
    """Write report.md, report.html, tables/ and figures/; print the short report.

    The run is compared with its original, with finished runs that differ only in the method, and
    with its training-free baselines. Load errors are also printed to stderr.

    Raises:
        OSError: The folder cannot be written.
        UserError: The result has no scores of its original.
    """
    report = build_report(folder, result, runs_root=runs_root)
    figures = write_figures(folder, report.sections)
    write_tables(folder, report.sections)
    write_atomic(folder / "report.md", render_markdown(report))
    write_atomic(folder / "report.html", render_html(report, figures))
    print_report(report)
    for error in report.load_errors:
        print(escape_controls(f"imsm: {error}"), file=sys.stderr)
    print(f"report: {folder / 'report.html'} (also report.md, tables/, figures/)")


def build_report(folder: Path, result: Mapping[str, Any], *, runs_root: Path) -> Report:
    """Compute the report; the arguments are those of `write_report`."""
    comparison = build_comparison_set(folder, result, runs_root=runs_root)
    data = build_report_data(comparison.runs, comparison.baselines, comparison.seeds)
    return Report(
        title=report_title(data),
        subtitle=report_subtitle(data.focus.result, compared=len(data.runs) > 1),
        headline=build_headline(data),
        run=str(result["name"]),
        excluded=comparison.excluded,
        load_errors=comparison.load_errors,
        sections=build_sections(data),
        provenance=format_provenance(result),
    )


def write_figures(folder: Path, sections: Sequence[Section]) -> dict[str, bytes]:
    """Draw every figure into ``figures/<name>.png``; return the files by name."""
    directory = folder / "figures"
    directory.mkdir(exist_ok=True)
    drawn = {}
    for figure in (figure for section in sections for figure in section.figures):
        stream = io.BytesIO()
        # without date and version, equal numbers give equal files
        figure.draw().savefig(stream, format="png", dpi=_DPI, metadata={"Software": None, "Title": figure.alt})
        drawn[figure.name] = stream.getvalue()
        # replaced at once, so that a report never links half a picture
        write_atomic(directory / f"{figure.name}.png", drawn[figure.name])
    return drawn


def write_tables(folder: Path, sections: Sequence[Section]) -> None:
    """Write every section's table as ``folder/tables/<name>.csv``."""
    directory = folder / "tables"
    directory.mkdir(exist_ok=True)
    for section in sections:
        if section.table is not None:
            write_atomic(directory / f"{section.name}.csv", section.table.to_csv())


def report_title(data: ReportData) -> str:
    """Return a readable name of the run, e.g. "IMSM with lora on gsm8k"."""
    config = data.focus.result["config"]
    if data.focus.method == "original":
        return f"{backbone_label(config)} before training"
    if is_imported(data.focus.result["identity"]):
        on = "" if data.target is None else f" on {data.target}"
        return f"Imported adapter ({config['peft']['name']}){on}"
    method = {"imsm": "IMSM", "peft": "PEFT"}.get(data.focus.method, data.focus.method)
    return f"{method} with {config['peft']['name']} on {config['data']['name']}"


def report_subtitle(result: Mapping[str, Any], *, compared: bool) -> str:
    """Return the backbone and, for a run that is ``compared`` with its original, adapter, data, recipe and seed."""
    config = result["config"]
    parts = ["original"]
    if compared and is_imported(result["identity"]):
        parts = [config["peft"]["name"], f"imported adapter ({config['imported']['source']})"]
    elif compared:
        parts = [config["peft"]["name"], f"trained on {config['data']['name']}"]
        parts += [f"recipe {config['trainer']['name']}", f"seed {config['seed']}"]
    return " · ".join([backbone_label(config), *parts])
