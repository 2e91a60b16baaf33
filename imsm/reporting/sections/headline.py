"""What came out of a run in one sentence, written from its numbers."""

from collections.abc import Sequence

from imsm.config.identity import is_imported
from imsm.evaluation.statistics.intervals import Interval, macro_average_ci
from imsm.reporting.render.formatting import format_interval, format_number
from imsm.reporting.report_data import ReportData
from imsm.reporting.runs import ComparedRun

_PEFT_NAMES = {
    "lora": "LoRA",
    "dora": "DoRA",
    "adalora": "AdaLoRA",
    "ia3": "(IA)³",
    "oft": "OFT",
    "vera": "VeRA",
    "bitfit": "BitFit",
    "loramoe": "LoRAMoE",
}
"""How papers write the names of PEFT methods."""


def build_headline(data: ReportData) -> list[str]:
    """Return one sentence on what each run gained and lost; then tests at chance and baselines as good as the run."""
    original = data.by_method.get("original")
    if original is None or data.focus is original:
        scores = [f"{task} {format_number(data.mean(data.focus, [task]))}" for task in data.tasks]
        return [f"Scores in points: {', '.join(scores)}."]
    # PEFT first: the others are compared with its gain
    runs = sorted((run for run in data.runs if run is not original), key=lambda run: run.method != "peft")
    clauses = [_clause(data, run, original, first=run is runs[0]) for run in runs]
    found = [clause for clause in clauses if clause]
    sentences = [f"{found[0][:1].upper()}{found[0][1:]}{''.join(f'; {each}' for each in found[1:])}."] if found else []
    if data.at_chance:
        sentences.append(f"The original is at chance on {' and '.join(data.at_chance)}, which no average includes.")
    if names := data.matches.get(data.focus.label):
        sentences.append(f"Training-free baselines match it: {', '.join(names)}.")
    return sentences


def _clause(data: ReportData, run: ComparedRun, original: ComparedRun, *, first: bool) -> str:
    """Return what a run gained on the target and lost on the tests; empty if neither was evaluated."""
    target = [] if data.target is None else [data.target]
    gain, loss = (_change(data, run, original, tasks) for tasks in (target, data.informative))
    parts = []
    if gain is not None:
        kept = None if first else _share_of_gain(data, run)
        parts.append(kept or _describe(gain) + (f" points on {data.target}" if first else ""))
    if loss is not None:
        tests = data.informative
        where = f" on {tests[0]}" if len(tests) == 1 else f" on average over {_join(tests)}"
        parts.append(_describe(loss) + (where if first else ""))
    return f"{_name(data, run)} {' and '.join(parts)}" if parts else ""


def _share_of_gain(data: ReportData, run: ComparedRun) -> str | None:
    """Return how much of the adapter's gain a gate on the frozen adapter keeps; None for other runs."""
    share = {point.label: point.plasticity for point in data.points}.get(run.label)
    if share is None or "frozen_adapter" not in run.result["identity"]:
        return None
    return f"kept {share:.0f} % of the gain"


def _change(
    data: ReportData, run: ComparedRun, original: ComparedRun, tasks: Sequence[str]
) -> Interval | float | None:
    """Return the mean difference from the original over tasks, with its interval where predictions exist."""
    after, before = data.mean(run, tasks), data.mean(original, tasks)
    if after is None or before is None:
        return None
    pairs = [each for each in data.comparisons if (each.run, each.reference) == (run.label, original.label)]
    found = {each.task: each.difference for each in pairs}
    if not all(task in found for task in tasks):
        return after - before
    return macro_average_ci([found[task] for task in tasks], tests=list(tasks))


def _describe(change: Interval | float) -> str:
    """Return "gained 8.5" or "lost 3.0"; with its interval a change that may be 0."""
    if isinstance(change, Interval):
        if change.low <= 0 <= change.high and change.low < change.high:
            return f"changed by {format_interval(change.estimate, change.low, change.high, signed=True)}"
        change = change.estimate
    number = format_number(abs(change))
    return f"{'lost' if change < 0 else 'gained'} {number}" if float(number) else f"changed by {number}"


def _name(data: ReportData, run: ComparedRun) -> str:
    """Return a run's name as prose."""
    identity, peft = run.result["identity"], str(run.result["config"]["peft"]["name"])
    if is_imported(identity):
        return "the imported adapter"
    if run.method == "peft":
        return _PEFT_NAMES.get(peft, peft)
    similar = [other for other in data.runs if other.method == run.method]
    frozen = [other for other in similar if "frozen_adapter" in other.result["identity"]]
    if run in frozen and len(frozen) == 1:
        return "a gate fitted afterwards"
    return run.label.replace("imsm", "IMSM", 1) if len(similar) > 1 else run.method.replace("imsm", "IMSM")


def _join(names: Sequence[str]) -> str:
    return f"{', '.join(names[:-1])} and {names[-1]}"
