"""Section: statistics of the gate."""

import pandas

from imsm.reporting.figures.gate import draw_gate
from imsm.reporting.gate_stats import format_decided, gate_table, gate_warnings
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


_DECIDED = (
    "Decided: the streams that the queries continued with after the prompt; the weight of a chosen one is 0 or 1."
)


def build_gate(data: ReportData) -> Section | None:
    """Build the section, or None without gate values."""
    shown: list[ComparedRun] = []
    records, warnings, heatmaps = [], [], []
    for run in data.runs:
        # by stream, because the name of a method may be custom
        if run.result["identity"]["method"]["stream"] != "interwoven":
            continue
        stats = gate_table(run, data.tasks, metrics=data.metrics)
        if not stats.empty:
            shown.append(run)
        for row in stats.to_dict("records"):
            task = row.pop("task")
            record = {"task": data.name(task), "run": run.label, "examples": str(row.pop("examples"))}
            record |= {str(key): format_number(value, digits=3) for key, value in row.items()}
            decided = run.task_result(task).get("decided")
            records.append(record | ({"decided": format_decided(decided)} if decided else {}))
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
        paragraphs=[_TEXT, *([_DECIDED] if any("decided" in record for record in records) else []), *warnings],
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
        if (predictions := run.predictions(task)) is None:
            continue
        # an empty response, or one from a run without token texts, has nothing to shade
        with_tokens = predictions[[bool(pieces) for pieces in predictions["token_texts"]]]
        correct = _correct(with_tokens, data.metrics[task])
        for name, rows in (("correct", with_tokens[correct]), ("wrong", with_tokens[~correct])):
            if len(rows):
                heatmaps.append(_heatmap(data, run, task, rows.iloc[0], name))
    return heatmaps


def _heatmap(data: ReportData, run: ComparedRun, task: str, row: pandas.Series, outcome: str) -> TokenHeatmap:
    """Return one response with its prompt, the accepted answers, and the other runs' responses."""
    # a row of pandas is named by its index, here the example's id
    others = []
    for other in data.runs:
        found = other.predictions(task)
        if other is not run and found is not None and row.name in found.index:
            outcomes = _correct(found.loc[[row.name]], data.metrics[task])
            label = f"{other.label}, {'correct' if outcomes.item() else 'wrong'}"
            others.append((label, str(found.at[row.name, "response"])))
    return TokenHeatmap(
        title=f"{run.label}, {row.name}, {outcome}",
        prompt=row["prompt"],
        references=" | ".join(row["references"]),
        others=others,
        pieces=list(row["token_texts"]),
        weights=list(row["gate_per_token"]),
    )


def _correct(predictions: pandas.DataFrame, metric: str) -> pandas.Series:
    return predictions[f"score.{metric}"] >= CORRECT
