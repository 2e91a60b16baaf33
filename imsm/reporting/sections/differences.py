"""Sections: paired differences, retained and forgotten examples, and seeds."""

from collections.abc import Mapping
from statistics import fmean
from typing import Any

from imsm.evaluation.statistics.significance import student_t
from imsm.reporting.figures.report import draw_differences, draw_transitions
from imsm.reporting.paired_comparison import PairedComparison
from imsm.reporting.render.document import ReportFigure, Section
from imsm.reporting.render.formatting import MISSING, format_interval, format_number, format_p_value, format_percent
from imsm.reporting.render.table import Table
from imsm.reporting.report_data import ReportData
from imsm.reporting.runs import ComparedRun

_TRANSITIONS_TEXT = (
    "Of the examples that the original answers correctly, a run retains some and forgets the others. Of those that it "
    "answers wrongly, a run learns some; the others were never known. Retention is 100 (s − c)/(b − c) %, where s is "
    "the run's score, b the original's and c the chance level. It is undefined unless the original is above chance by "
    "two standard errors."
)


def build_differences(data: ReportData) -> Section | None:
    """Build the section with paired differences, or None without comparisons."""
    if not data.comparisons:
        return None
    # Holm's family is what was adjusted, not the number of rows: some rows have no test
    family = sum(comparison.holm_p_value is not None for comparison in data.comparisons)
    table = Table.from_records([_difference_record(data, each) for each in data.comparisons], text_columns=2)
    text = (
        "Both runs on the same examples: difference in points with its 95 % bootstrap interval, clustered by passage; "
        "the numbers of examples that only the run, and only the reference, answers correctly; the exact p-value of "
        f"McNemar's test, and its Holm adjustment over the {family} tests of this report (every task and reference "
        "with correct or wrong answers, except forgetting tests marked †). Min. detectable difference: the smallest "
        "difference that this number of examples detects with a power of 80 %."
    )
    figure = ReportFigure(
        name="differences",
        alt="Differences of runs from their references by task with 95 % intervals",
        draw=lambda: draw_differences(data),
    )
    return Section(
        name="differences",
        title="Paired differences",
        paragraphs=[text],
        table=table,
        terminal_table=table.select(["task", "run − reference", "difference", "p, Holm"]),
        figures=[figure],
    )


def build_transitions(data: ReportData) -> Section | None:
    """Build the section with retained, forgotten and learned examples, or None without predictions."""
    if not data.retentions:
        return None
    records = [
        {
            "task": data.name(found.task),
            "run": found.run,
            "retained": str(found.counts.kept),
            "forgotten": str(found.counts.forgotten),
            "learned": str(found.counts.learned),
            "never known": str(found.counts.never_known),
            "chance": format_number(found.chance),
            # a target is to be learned; its retention would read as forgetting
            "retention": "target" if found.task == data.target else format_percent(found.retained),
        }
        for found in data.retentions
    ]
    figure = ReportFigure(
        name="transitions",
        alt="Shares of examples retained, forgotten, learned and never known, by task and run",
        draw=lambda: draw_transitions(data),
    )
    return Section(
        name="transitions",
        title="Retained, forgotten, learned",
        paragraphs=[_TRANSITIONS_TEXT],
        table=Table.from_records(records, text_columns=2),
        figures=[figure],
    )


def build_seeds(data: ReportData) -> Section | None:
    """Build the section with scores over seeds, or None if every run has one seed."""
    several = [run for run in data.runs if len(data.seeds.get(run.label, {})) > 1]
    records = [_seed_record(data, run, task) for run in several for task in data.tasks]
    if not records:
        return None
    return Section(
        name="seeds",
        title="Seeds",
        paragraphs=["Runs that differ only in the seed. Student's t-test over seeds is the test of the paper."],
        table=Table.from_records(records, text_columns=2),
    )


def _difference_record(data: ReportData, comparison: PairedComparison) -> dict[str, str]:
    difference, test = comparison.difference, comparison.test
    return {
        "task": data.name(comparison.task),
        "run − reference": f"{comparison.run} − {comparison.reference}",
        "difference": format_interval(difference.estimate, difference.low, difference.high, signed=True),
        "better : worse": MISSING if test is None else f"{test.better} : {test.worse}",
        "p, McNemar": format_p_value(test.p_value if test else None),
        "p, Holm": format_p_value(comparison.holm_p_value),
        "min. detectable difference": format_number(comparison.minimum_detectable),
    }


def _seed_record(data: ReportData, run: ComparedRun, task: str) -> dict[str, str]:
    scores = _seed_scores(data.seeds[run.label], task, data.metrics[task])
    peft = next((other for other in data.runs if other.method == "peft"), None)
    test = None
    if peft is not None and run is not peft:
        # a PEFT run may have fewer seeds: the t-test is not paired
        others = _seed_scores(data.seeds.get(peft.label, {}), task, data.metrics[task])
        test = student_t(scores, others) if scores and others else None
    return {
        "task": data.name(task),
        "run": run.label,
        "seeds": str(len(scores)),
        "mean": format_number(fmean(scores) if scores else None),
        "lowest": format_number(min(scores, default=None)),
        "highest": format_number(max(scores, default=None)),
        "t, versus PEFT": MISSING if test is None or test.t is None else f"{test.t:+.2f}",
        "p, Student": MISSING if test is None or test.t is None else format_p_value(test.p_value),
    }


def _seed_scores(results: Mapping[int, Mapping[str, Any]], task: str, metric: str) -> list[float]:
    # in the order of the seeds, because sums of floats depend on the order
    entries = [result["evaluation"]["tasks"].get(task, {}) for _, result in sorted(results.items())]
    values = [entry.get("metrics", {}).get(metric) for entry in entries]
    return [float(value) for value in values if value is not None]
