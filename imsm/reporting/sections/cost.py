"""Sections: training curves; parameters, time and memory."""

from imsm.reporting.figures.report import draw_training
from imsm.reporting.render.document import ReportFigure, Section
from imsm.reporting.render.formatting import format_number
from imsm.reporting.render.table import Table
from imsm.reporting.report_data import ReportData
from imsm.reporting.runs import ComparedRun
from imsm.reporting.training_log import read_training_log
from imsm.utils.formatting import format_bytes, format_duration


def build_training(data: ReportData) -> Section | None:
    """Build the section with training curves, or None without a log of two or more steps."""
    logs = {run.label: read_training_log(run.folder) for run in data.runs if run.result["training"]}
    # matplotlib draws no line through a single point
    logs = {label: log for label, log in logs.items() if len(log) > 1}
    if not logs:
        return None
    figure = ReportFigure(
        name="training", alt="Loss and gate mean over training steps", draw=lambda: draw_training(logs, data)
    )
    selections = [line for run in data.runs for line in _describe_selection(run)]
    return Section(name="training", title="Training", figures=[figure], paragraphs=selections)


def _describe_selection(run: ComparedRun) -> list[str]:
    """Return sentences about the selection of the checkpoint by retention."""
    training = run.result["training"] or {}
    selected, reached = training.get("best_retention"), training.get("min_target_reached", True)
    if selected is None and reached:
        return []
    floor = f"trainer.min_target={run.result['config']['trainer']['min_target']:g}"
    if not reached:
        return [
            f"{run.label}: no checkpoint reached {floor} on the held-out training examples, so the model is that of "
            "the last step."
        ]
    lines = [
        f"{run.label}: the model is the checkpoint of step {training['best_step']}, whose retention on the watched "
        f"items, {selected:.2f}, is the highest of those that reach {floor} on the held-out training examples."
    ]
    if tests := [name for name, watched in training["watch"].items() if watched["split"] == "test"]:
        lines.append(
            f"The watched items of {', '.join(tests)} are from the test set, because these tasks have no training "
            "examples: these items are not independent of the selection."
        )
    return lines


def build_cost(data: ReportData) -> Section:
    """Build the section with parameters, time and memory."""
    table = Table.from_records([_record(run) for run in data.runs])
    return Section(
        name="cost",
        title="Cost",
        paragraphs=["Trainable parameters, training and evaluation time, and peak memory of training."],
        table=table,
        terminal_table=table,
    )


def _record(run: ComparedRun) -> dict[str, str]:
    training = run.result["training"] or {}
    entries = run.result["evaluation"]["tasks"].values()
    seconds = sum(entry["seconds"] for entry in entries)
    tokens = sum(entry["new_tokens"] for entry in entries)
    return {
        "run": run.label,
        "adapter": f"{run.result['trainable_parameters']['adapter']:,}",
        "gate": f"{run.result['trainable_parameters']['gate']:,}",
        "training": format_duration(training.get("seconds")),
        "tokens/s": _rate(training.get("tokens_per_second")),
        "memory": format_bytes(training.get("peak_memory_bytes")),
        "evaluation": format_duration(seconds),
        # seconds of cached responses count too; they are 0 only without evaluated tasks
        "eval tok/s": _rate(tokens / seconds if seconds else None),
    }


def _rate(tokens_per_second: float | None) -> str:
    return format_number(None) if tokens_per_second is None else f"{tokens_per_second:,.0f}"
