"""Sections: averages, learning versus forgetting, and training-free baselines."""

from collections.abc import Sequence

from imsm.reporting.figures.report import draw_tradeoff
from imsm.reporting.render.document import ReportFigure, Section
from imsm.reporting.render.formatting import format_number, format_percent, join_names
from imsm.reporting.render.table import Table
from imsm.reporting.report_data import ReportData
from imsm.reporting.runs import ComparedRun
from imsm.reporting.tradeoff import TradeoffCurve, TradeoffPoint, streams_per_token
from imsm.utils.formatting import format_duration


def build_averages(data: ReportData) -> Section | None:
    """Build the section with average scores, or None without a forgetting test."""
    if all(task == data.target for task in data.tasks):
        return None
    points = {point.label: point for point in data.points}
    # the paper averages over the target and over tests that a run was trained on
    counted = [task for task in data.tasks if task == data.target or task in data.common]
    records = [
        {
            "run": run.label,
            "retention average": format_number(data.mean(run, data.informative)),
            "paper's average": format_number(data.mean(run, counted)),
            **(points[run.label].cells() if points else {}),
        }
        for run in data.runs
    ]
    table = Table.from_records(records)
    return Section(name="averages", title="Averages", paragraphs=_average_paragraphs(data), table=table)


def build_tradeoff(data: ReportData) -> Section | None:
    """Build the first section, the trade-off figure with a short table, or None with fewer than two points."""
    points = [point for point in data.points if point.has_position]
    if len(points) < 2:
        return None
    # original and PEFT are the ends of every curve, so a comparison with them has no information
    runs = [point for point in points if point.baseline is None and point.method not in ("original", "peft")]
    texts = ["Up and to the right is better: more of the target learned, more of the other tasks retained."]
    for curve in data.curves:
        texts += _describe_curve(curve, runs)
    if not data.curves:
        texts.append("Run `imsm baselines RUN` to add the curves of swept baselines.")
    alt = "Target score and stability of all runs and baselines"
    figure = ReportFigure(name="tradeoff", alt=alt, draw=lambda: draw_tradeoff(data))
    return Section(
        name="tradeoff",
        title="Learning versus forgetting",
        table=Table.from_records([_summary_record(data, run) for run in data.runs]),
        notes=[_describe_summary(data), *texts],
        figures=[figure],
        lead=True,
    )


def _summary_record(data: ReportData, run: ComparedRun) -> dict[str, str]:
    """Return what a run learned, what it retained, and its price."""
    stability = {point.label: point.stability for point in data.points}
    training = run.result["training"] or {}
    return {
        "run": run.label,
        data.name(data.target or "").replace(" (target)", ""): format_number(data.mean(run, [data.target or ""])),
        "other tests": format_number(data.mean(run, data.informative)),
        "kept": format_percent(stability.get(run.label)),
        "KL": format_number(data.kl_to_original(run, data.informative), digits=3),
        "streams": f"{streams_per_token(run.result):.2g}",
        "training": format_duration(training.get("seconds")),
    }


def _describe_summary(data: ReportData) -> str:
    kl = any(data.kl_to_original(run, data.informative) is not None for run in data.runs)
    return (
        "Scores in points. Other tests: average over the informative forgetting tests, on which the original is above "
        f"chance by two standard errors: {join_names(data.informative)}. Kept: their mean retention (stability). "
        f"{'KL to the original: nats per answer token, mean over these tests. ' if kl else ''}Streams: forward passes "
        "per generated token."
    )


def build_baselines(data: ReportData) -> Section | None:
    """Build the section with the scores of baselines, or None without baselines."""
    baselines = [*data.baselines, *data.peft_baselines]
    if not baselines:
        return None
    text = (
        "What both streams, or the adapter alone, achieve without a trained gate. The oracle router is given the task "
        "and retains everything by construction: it is an upper bound, not a method."
    )
    points = {point.label: point for point in [*data.points, *data.peft_points]}
    records = []
    for run in [*data.runs, *baselines]:
        record = {"run": run.label}
        record |= {data.name(task): format_number(data.mean(run, [task])) for task in data.tasks}
        record["retention average"] = format_number(data.mean(run, data.informative))
        if run.label in points:
            cells = points[run.label].cells()
            record |= {name: cells[name] for name in ("plasticity", "stability")}
        records.append(record)
    table = Table.from_records(records)
    # the columns of all tasks do not fit into 80 characters
    target = [] if data.target is None else [data.name(data.target)]
    return Section(
        name="baselines",
        title="Training-free baselines",
        paragraphs=[text],
        table=table,
        notes=[describe_matches(run, names) for run, names in data.matches.items()],
        terminal_table=table.select(["run", *target, "retention average", *(["stability"] if points else [])]),
    )


def describe_matches(run: str, names: Sequence[str]) -> str:
    """Return the sentence that names baselines at least as good as a run."""
    return (
        f"Training-free baselines match {run}: {', '.join(names)} retain at least as much at no lower "
        "target score. These results do not support a trained gate."
    )


def retention_on_curve(curve: TradeoffCurve, target: float) -> str:
    """Describe what a curve retains at a target score."""
    retained = curve.stability_at(target)
    if retained is not None:
        return f"retains {retained:.1f} %"
    # below the whole curve, every point of it learns more than the run
    if curve.positions and target < min(score for score, _ in curve.positions):
        best = max(stability for _, stability in curve.positions)
        return f"scores higher at every point and retains up to {best:.1f} %"
    return "does not reach it"


def _average_paragraphs(data: ReportData) -> list[str]:
    trained_on = f" and the tasks marked † ({join_names(sorted(data.trained_on))})" if data.trained_on else ""
    texts = [
        "The retention average is over the forgetting tests that no compared run was trained on and on which the "
        f"original is above chance: {join_names(data.informative)}. The paper's "
        f"average (its tables 2 and 3) includes the target{trained_on}, "
        "and so mixes learning with retention."
    ]
    if incomplete := [task for task in data.tasks if task not in data.common]:
        texts.append(f"Averages exclude forgetting tests that a run has no score of: {join_names(incomplete)}.")
    if data.at_chance:
        texts.append(
            f"The original is at chance on {' and '.join(data.at_chance)} (not above the best constant answer by two "
            "standard errors): these scores cannot show forgetting, and no average of forgetting tests includes them."
        )
    if data.points:
        texts.append(
            "Plasticity is the share of PEFT's gain on the target, undefined if the 95 % interval of that gain "
            "includes 0. Stability is the mean retention of the forgetting tests above chance, a dash if predictions "
            "of a forgetting test are missing."
        )
    return texts


def _describe_curve(curve: TradeoffCurve, runs: list[TradeoffPoint]) -> list[str]:
    name = curve.baseline.replace("_", " ")
    area = "undefined, because plasticity is undefined"
    if any(point.plasticity is not None for point in curve.points):
        area = f"{curve.hypervolume:.3f} (1 is PEFT's full gain with full retention; values above 1 are possible)"
    texts = [f"{name} over {curve.symbol} ({len(curve.points)} points including its ends): hypervolume {area}."]
    for run in runs:
        assert run.target is not None
        texts.append(
            f"At the target score of {run.label} ({format_number(run.target)}), {name} "
            f"{retention_on_curve(curve, run.target)}; {run.label} retains {format_percent(run.stability)}."
        )
    return texts
