"""What the gate did."""

from __future__ import annotations

from imsm.reporting.gate_stats import gate_table, gate_warnings
from imsm.reporting.render.formatting import number
from imsm.reporting.report_data import ReportData
from imsm.reporting.runs import ComparedRun
from imsm.reporting.sections.base import ReportFigure, Section, TokenHeatmap, table_section


def build(evidence: ReportData) -> Section | None:
    """The part; None where there is nothing to say."""
    gated = [arm for arm in evidence.arms if arm.result["identity"]["method"]["stream"] == "interwoven"]
    shown: list[ComparedRun] = []
    rows, lines, pictures, heat = [], [], [], []
    for arm in gated:
        table = gate_table(arm, evidence.tasks, metric=evidence.metrics)
        shown += [] if table.empty else [arm]
        for row in table.to_dict("records"):
            values = {k: number(v, places=3) for k, v in row.items() if k not in ("task", "items")}
            rows.append({"task": evidence.name(row["task"]), "arm": arm.label, "items": str(row["items"])} | values)
        lines += gate_warnings(arm, evidence.tasks, start=_start(arm))
        heat += _heat(evidence, arm)
    if not rows:
        return None
    from imsm.reporting.figures.gate import draw_gate

    pictures.append(
        ReportFigure(
            name="gate",
            alt="The gate over items, along the answer, and of right and wrong answers",
            draw=lambda: draw_gate(evidence, shown),
        )
    )
    lines.insert(
        0,
        "The weight of the original memory where the answer's tokens were chosen, a mean over "
        "dimensions: 0 is PEFT alone, 1 the original alone. auc: how well it alone tells right "
        "answers from wrong (0.5: not at all).",
    )
    found = table_section("gate", "The gate", rows, lines, 2, pictures)
    if found is not None:
        found.heatmaps = heat
    return found


def _start(arm: ComparedRun) -> float | None:
    """The gate's mean at the first step of training."""
    from imsm.reporting.training_log import read_curves

    log = read_curves(arm.folder)
    if "gate_mean" not in log or log.empty:
        return None
    first = log["gate_mean"].dropna()
    return float(first.iloc[0]) if len(first) else None


def _heat(evidence: ReportData, arm: ComparedRun) -> list[TokenHeatmap]:
    """Of each task the first answer that the arm got right, and the first that it got wrong."""
    found = []
    for task in evidence.tasks:
        items = arm.items(task)
        if items is None:
            continue
        told = items[[bool(pieces) for pieces in items["token_texts"]]]
        right = told[f"score.{evidence.metrics[task]}"] >= 0.5
        for name, rows in (("right", told[right]), ("wrong", told[~right])):
            if len(rows):
                row = rows.iloc[0]
                found.append(
                    TokenHeatmap(
                        title=f"{arm.label}, {row.name}, {name}",
                        pieces=list(row["token_texts"]),
                        weights=list(row["gate_per_token"]),
                    )
                )
    return found
