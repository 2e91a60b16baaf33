"""The result of a report in a few sentences."""

from imsm.reporting.render.formatting import format_interval, format_number, join_names
from imsm.reporting.report_data import ReportData
from imsm.reporting.runs import ComparedRun


def build_headline(data: ReportData) -> list[str]:
    """Return what the run learned and what it retained, next to PEFT where PEFT was compared."""
    original = data.by_method.get("original")
    if original is None or data.focus is original:
        scores = [f"{task} {format_number(data.mean(data.focus, [task]))}" for task in data.tasks]
        return [f"Scores in points: {', '.join(scores)}."]
    sentences = [] if data.target is None else [_learned(data, original, data.target)]
    if data.forgetting:
        sentences.append(_retained(data, original))
    if data.at_chance:
        sentences.append(f"The original is at chance on {' and '.join(data.at_chance)}.")
    if names := data.matches.get(data.focus.label):
        sentences.append(f"Training-free baselines match it: {', '.join(names)}.")
    return sentences


def _learned(data: ReportData, original: ComparedRun, target: str) -> str:
    """Return the target score before and after training, with the difference from PEFT."""
    label = data.focus.label
    before, after = (format_number(data.mean(run, [target])) for run in (original, data.focus))
    differences = {
        each.reference: each.difference for each in data.comparisons if (each.task, each.run) == (target, label)
    }
    peft = data.by_method.get("peft")
    compared = ""
    if peft is not None and peft.label in differences:
        found = differences[peft.label]
        compared = f", {format_interval(found.estimate, found.low, found.high, signed=True)} to {peft.label}"
    return f"Target {target}: {before} → {after} points{compared}."


def _retained(data: ReportData, original: ComparedRun) -> str:
    """Return the stability of the run and of PEFT, or the retention average without a PEFT run."""
    stability = {point.label: point.stability for point in data.points}
    label, peft = data.focus.label, data.by_method.get("peft")
    used = join_names([task for task in data.forgetting if task not in data.at_chance])
    if stability.get(label) is None:
        before, after = (format_number(data.mean(run, data.forgetting)) for run in (original, data.focus))
        return f"Retention average over {join_names(data.forgetting)}: {before} → {after} points."
    compared = ""
    if peft is not None and peft is not data.focus:
        compared = f" ({peft.label}: {format_number(stability[peft.label])} %)"
    return f"Retained of {used}: {format_number(stability[label])} %{compared}."
