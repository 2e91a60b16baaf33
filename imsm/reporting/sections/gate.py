"""Section: statistics of the gate."""

from __future__ import annotations

from imsm.reporting.figures.gate import draw_gate
from imsm.reporting.gate_stats import gate_table, gate_warnings
from imsm.reporting.paired_comparison import CORRECT
from imsm.reporting.render.document import ReportFigure, Section, TokenHeatmap
from imsm.reporting.render.formatting import format_number
from imsm.reporting.render.table import Table
from imsm.reporting.report_data import ReportData
from imsm.reporting.runs import ComparedRun
from imsm.reporting.training_log import read_training_log

_TEXT = (
    "Weight of the original's hidden state where the response's tokens were generated, averaged over dimensions: "
    "0 is PEFT alone, 1 the original alone. AUC: how well the gate separates correct from wrong answers (chance: 0.5)."
)


def build(data: ReportData) -> Section | None:
    """Build the section, or None without gate values."""
    gated = [run for run in data.runs if run.result["identity"]["method"]["stream"] == "interwoven"]
    shown: list[ComparedRun] = []
    records, warnings, heatmaps = [], [], []
    for run in gated:
        stats = gate_table(run, data.tasks, metrics=data.metrics)
        if not stats.empty:
            shown.append(run)
        for row in stats.to_dict("records"):
            values = {
                str(key): format_number(value, digits=3)
                for key, value in row.items()
                if key not in ("task", "examples")
            }
            names = {"task": data.name(row["task"]), "run": run.label, "examples": str(row["examples"])}
            records.append(names | values)
        warnings += gate_warnings(run, data.tasks, start=_initial_mean(run))
        heatmaps += _heatmaps(data, run)
    if not records:
        return None
    figure = ReportFigure(
        name="gate",
        alt="Gate values over examples, along the response, and of correct and wrong answers",
        draw=lambda: draw_gate(data, shown),
    )
    return Section(
        name="gate",
        title="Gate",
        paragraphs=[_TEXT, *warnings],
        table=Table.from_records(records, text_columns=2),
        figures=[figure],
        heatmaps=heatmaps,
    )


def _initial_mean(run: ComparedRun) -> float | None:
    """Return the gate's mean at the first logged training step."""
    log = read_training_log(run.folder)
    values = log["gate_mean"].dropna() if "gate_mean" in log else log
    return None if values.empty else float(values.iloc[0])


def _heatmaps(data: ReportData, run: ComparedRun) -> list[TokenHeatmap]:
    """Return the first correct and the first wrong response of each task."""
    heatmaps = []
    for task in data.tasks:
        predictions = run.predictions(task)
        if predictions is None:
            continue
        with_tokens = predictions[[bool(pieces) for pieces in predictions["token_texts"]]]
        correct = with_tokens[f"score.{data.metrics[task]}"] >= CORRECT
        for name, rows in (("correct", with_tokens[correct]), ("wrong", with_tokens[~correct])):
            if len(rows):
                row = rows.iloc[0]
                heatmaps.append(
                    TokenHeatmap(
                        title=f"{run.label}, {row.name}, {name}",
                        pieces=list(row["token_texts"]),
                        weights=list(row["gate_per_token"]),
                    )
                )
    return heatmaps
