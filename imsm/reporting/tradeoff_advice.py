"""All that is known of one target: methods, baselines, seeds and checkpoints, their price, and the one to choose."""

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from imsm.config.identity import identity_without_seed, is_original
from imsm.evaluation.statistics.forgetting import stability
from imsm.evaluation.statistics.intervals import Interval, student_ci
from imsm.reporting.figures.style import COLORS, MARKERS, STYLE, color, legend_below, one_axes
from imsm.reporting.paired_comparison import compute_retention
from imsm.reporting.render.formatting import MISSING, format_interval, format_number, join_names
from imsm.reporting.render.table import Table
from imsm.reporting.runs import (
    ComparedRun,
    Result,
    baselines_of,
    comparable,
    finished_runs,
    headline,
    runs_to_compare,
    tests_at_chance,
)
from imsm.reporting.tradeoff import OWN_ADAPTER, streams_per_token
from imsm.utils.errors import UserError
from imsm.utils.formatting import format_duration
from imsm.utils.hashing import hash_json

_NOT_A_METHOD = ("oracle_router",)
"""Baselines that are an upper bound."""


@dataclass(kw_only=True)
class Candidate:
    """One method, baseline value or checkpoint: a target score in points and a retention in percent for each seed."""

    label: str
    results: list[Result] = field(default_factory=list)
    targets: list[float] = field(default_factory=list)
    kept: list[float] = field(default_factory=list)
    path_of: str | None = None  # label of the training that a checkpoint is of
    is_method: bool = True  # False for an upper bound

    @property
    def target(self) -> Interval:
        """Target score with its 95 % interval over seeds; a point for one seed."""
        return student_ci(self.targets)

    @property
    def retention(self) -> Interval:
        """Mean retention of the informative tests with its 95 % interval over seeds; a point for one seed."""
        return student_ci(self.kept)

    @property
    def streams(self) -> float:
        """Mean number of forward passes per generated token."""
        return max(map(streams_per_token, self.results))


@dataclass(frozen=True, kw_only=True)
class Advice:
    """The candidates for a target, the best first, and the recommendation as sentences."""

    task: str
    metric: str
    informative: list[str]
    original: float | None  # target score in points
    candidates: list[Candidate]
    left_out: list[str]
    recommended: Candidate | None
    sentences: list[str]


def advise(
    folder: Path,
    result: Result,
    *,
    runs_root: Path,
    keep: float,
    target_at_least: float | None,
    among: Collection[Path] | None = None,
) -> Advice:
    """Collect all runs on the backbone and the target of a run, and recommend one under the constraint.

    ``keep`` is a retention in percent, ``target_at_least`` a target score in points, ``among`` the folders of the
    runs to compare (None: all).

    Raises:
        UserError: The run has no target, or no forgetting test on which the original is above chance.
    """
    original = runs_to_compare(folder, result, runs_root=runs_root, siblings=False)[0]
    entries, task = result["evaluation"]["tasks"], _target(result)
    if task is None:
        raise UserError(f"{folder}: its target was not evaluated; name it in evaluation.tasks")
    tests = [name for name, entry in entries.items() if name != task and not entry.get("trained_on")]
    informative = _informative(original, tests, entries)
    if not informative:
        raise UserError(
            f"{folder}: the original is above chance on none of its forgetting tests ({join_names(tests)})"
        )
    found: dict[str, Candidate] = {}
    left_out = []
    for key, run, path_of in _known_runs(result, folder, runs_root, among):
        shared = [name for name in (task, *informative) if comparable(result, run.result, name)]
        metric = headline(entries[task])
        retained = [compute_retention(run, original, task=t, metric=headline(entries[t])) for t in informative]
        score, known = run.score(task, metric), [each.retained for each in retained if each is not None]
        mean = stability(dict(zip(informative, known, strict=False)))
        if len(shared) <= len(informative) or score is None or len(known) < len(informative) or mean is None:
            left_out.append(run.label)
            continue
        baseline = run.result["config"].get("baseline") or {}
        candidate = found.setdefault(key, Candidate(label=run.label, path_of=path_of))
        candidate.is_method = baseline.get("name") not in _NOT_A_METHOD
        candidate.results.append(run.result)
        candidate.targets.append(score)
        candidate.kept.append(mean)
    candidates = _distinct(found)
    recommended, sentences = _recommend(candidates, keep=keep, target_at_least=target_at_least)
    return Advice(
        task=task,
        metric=headline(entries[task]),
        informative=informative,
        original=original.score(task, headline(entries[task])),
        candidates=sorted(candidates, key=lambda each: (-each.target.estimate, -each.retention.estimate)),
        left_out=left_out,
        recommended=recommended,
        sentences=sentences,
    )


def _informative(original: ComparedRun, tests: Sequence[str], entries: Mapping[str, Any]) -> list[str]:
    """Return the tests on which the original is above chance."""
    at_chance = tests_at_chance(original.result["evaluation"]["tasks"], tests)
    for name in tests:
        # results of earlier versions do not record it; their predictions show it
        own = compute_retention(original, original, task=name, metric=headline(entries[name]))
        at_chance += [name] if own is not None and own.retained is None else []
    return [name for name in tests if name not in at_chance]


def _known_runs(
    result: Result, folder: Path, root: Path, among: Collection[Path] | None
) -> Iterator[tuple[str, ComparedRun, str | None]]:
    """Yield the runs, baselines and checkpoints on a run's backbone and target, with a key that seeds share."""
    target = _target(result)
    found = [(p, other) for other, p in finished_runs(root) if p != folder and (among is None or p in among)]
    for path, other in [*found, (folder, result)]:
        identity = other["identity"]
        same = identity["backbone"] == result["identity"]["backbone"] and _target(other) == target
        if is_original(identity) or not same:
            continue
        label = re.sub(r"-s\d+-[0-9a-f]{8}$", "", str(other["name"]))
        key = hash_json(identity_without_seed(identity))
        yield key, ComparedRun(label=label, result=other, folder=path), None
        for baseline in baselines_of(path):
            if baseline.label == OWN_ADAPTER and "frozen_adapter" in identity:
                continue  # the run that the adapter is from
            yield f"{key}/{baseline.label}", replace(baseline, label=f"{label}: {baseline.label}"), None
        for step in (other["training"] or {}).get("path", []):
            at = {**other, "evaluation": {**other["evaluation"], "tasks": step["tasks"]}}
            kept = path / "kept_checkpoints" / f"step-{step['step']:08d}"
            name = f"{label}: step {step['step']}"
            yield f"{key}/{name}", ComparedRun(label=name, result=at, folder=kept), key


def _target(result: Result) -> str | None:
    entries: Mapping[str, Any] = result["evaluation"]["tasks"]
    return next((name for name, entry in entries.items() if entry["role"] == "target"), None)


def _distinct(found: Mapping[str, Candidate]) -> list[Candidate]:
    """Return the candidates with distinct labels: runs of one name differ in what only the identity holds."""
    labels = [each.label for each in found.values()]
    for key, candidate in found.items():
        if labels.count(candidate.label) > 1:
            candidate.label += f" ({key.split('/')[0][:8]})"
    for candidate in found.values():
        if candidate.path_of is not None and candidate.path_of in found:
            candidate.path_of = found[candidate.path_of].label
    return list(found.values())


def _recommend(
    candidates: Sequence[Candidate], *, keep: float, target_at_least: float | None
) -> tuple[Candidate | None, list[str]]:
    """Return the candidate with the highest target score among those that satisfy the constraint, and why."""
    floor = "" if target_at_least is None else f" and scores at least {format_number(target_at_least)} on the target"
    constraint = f"keeps at least {format_number(keep)} % of the other tests{floor}"
    methods = [each for each in candidates if each.is_method]
    if not methods:
        return None, ["Nothing to recommend: no run has predictions on the same examples as the original."]
    minimum = -1.0 if target_at_least is None else target_at_least
    satisfying = [each for each in methods if each.retention.estimate >= keep and each.target.estimate >= minimum]
    if not satisfying:
        reaching = [each for each in methods if each.target.estimate >= minimum]
        nearest = max(reaching or methods, key=lambda each: each.retention.estimate)
        return None, [f"Nothing {constraint}. The most is kept by {_describe(nearest)}."]
    # at an equal score the cheaper one
    best = max(satisfying, key=lambda each: (each.target.estimate, -each.streams, each.retention.estimate))
    sentences = [f"Recommended: {_describe(best)}. It has the highest target score of what {constraint}."]
    if len(best.targets) < 2:
        sentences.append(
            "It has one seed, so the variance of training is unknown; train other seeds (seed=1, seed=2)."
        )
    elif best.retention.low < keep or best.target.low < minimum:
        sentences.append("Its interval over seeds includes values that violate the constraint.")
    others = [each for each in satisfying if each is not best and _overlap(each.target, best.target)]
    if others:
        names = join_names([each.label for each in others])
        sentences.append(f"Its target score is not distinguishable over seeds from that of {names}.")
    return best, sentences


def _overlap(one: Interval, other: Interval) -> bool:
    return one.low <= other.high and other.low <= one.high


def _describe(candidate: Candidate) -> str:
    return (
        f"{candidate.label}, target {_with_interval(candidate.target, candidate)}, "
        f"kept {_with_interval(candidate.retention, candidate)} %"
    )


def _with_interval(value: Interval, candidate: Candidate) -> str:
    if len(candidate.targets) < 2:
        return format_number(value.estimate)
    return format_interval(value.estimate, value.low, value.high)


def pareto_front(candidates: Sequence[Candidate]) -> list[Candidate]:
    """Return the candidates that no other one beats in target score and retention."""

    def dominates(one: Candidate, other: Candidate) -> bool:
        pairs = [(x.target.estimate, x.retention.estimate) for x in (one, other)]
        return pairs[0] != pairs[1] and all(a >= b for a, b in zip(*pairs, strict=True))

    methods = [each for each in candidates if each.is_method]
    return [each for each in methods if not any(dominates(other, each) for other in methods)]


def advice_table(advice: Advice) -> Table:
    """Return one row per candidate with its scores and its price in inference and in training."""
    front = pareto_front(advice.candidates)
    records = [
        {
            "method": each.label,
            "seeds": str(len(each.targets)),
            advice.task: _with_interval(each.target, each),
            "kept, %": _with_interval(each.retention, each),
            "Pareto": "yes" if each in front else "",
            "streams": f"{each.streams:.2g}",
            **_training_price(each),
        }
        for each in advice.candidates
    ]
    notes = [
        f"{advice.task}: {advice.metric} in points, original {format_number(advice.original)}. Kept: mean "
        f"retention of {join_names(advice.informative)}, on which the original is above chance by two standard "
        "errors. Brackets: 95 % intervals over seeds. Streams: forward passes per generated token. Price of training: "
        "mean over seeds.",
        *(
            [f"Left out, without predictions on the same examples: {join_names(advice.left_out)}."]
            * bool(advice.left_out)
        ),
        *advice.sentences,
    ]
    bold = [number for number, each in enumerate(advice.candidates) if each is advice.recommended]
    table = Table.from_records(records) if records else Table(columns=["method"], rows=[])
    return replace(table, caption=f"trained on {advice.task}", notes=notes, bold_rows=bold)


def _training_price(candidate: Candidate) -> dict[str, str]:
    trainings = [result["training"] for result in candidate.results if result["training"]]

    def mean(key: str) -> float | None:
        values = [training[key] for training in trainings if training.get(key) is not None]
        return sum(values) / len(values) if values else None

    tokens, counts = mean("tokens"), candidate.results[0]["trainable_parameters"]
    return {
        "parameters": f"{sum(counts.values()):,}",
        "tokens": MISSING if tokens is None else f"{tokens:,.0f}",
        "training": format_duration(mean("seconds")),
    }


def draw_advice(advice: Advice) -> Figure:
    """Draw retention over the target score with intervals over seeds, the Pareto front and training paths."""
    front = sorted(pareto_front(advice.candidates), key=lambda each: each.target.estimate)
    with matplotlib.rc_context(STYLE):
        figure, axes = one_axes(height=4.6)
        steps = [(each.target.estimate, each.retention.estimate) for each in front]
        if steps:
            axes.step(*zip(*steps, strict=True), where="post", color="#BBBBBB", linewidth=1, label="Pareto front")
        if advice.original is not None:
            axes.plot([advice.original], [100], "x", color="#555555", label="original")
        for style, each in enumerate(each for each in advice.candidates if each.path_of is None):
            x, y = each.target, each.retention
            axes.errorbar(
                [x.estimate],
                [y.estimate],
                xerr=[[x.estimate - x.low], [x.high - x.estimate]],
                yerr=[[y.estimate - y.low], [y.high - y.estimate]],
                # shifted after each round of colors, so that no two methods look the same
                fmt=MARKERS[(style + style // len(COLORS)) % len(MARKERS)],
                color=color(style),
                markersize=9 if each is advice.recommended else 5,
                capsize=2,
                label=each.label,
            )
            # results are in the order of the steps; each path ends at the trained model
            path = [other for other in advice.candidates if other.path_of == each.label]
            path.sort(key=lambda other: int(other.label.rpartition("step ")[2]))
            start = [] if advice.original is None else [(100.0, advice.original)]
            points = [*start, *((o.retention.estimate, o.target.estimate) for o in (*path, each))]
            if path:
                kept, scores = zip(*points, strict=True)
                axes.plot(scores, kept, color=color(style), linewidth=0.9, marker=".", markersize=4)
        axes.set_xlabel(f"target score: {advice.task}, {advice.metric} (points)")
        axes.set_ylabel("mean retention of the other tests (%)")
        axes.margins(0.08)
        legend_below(figure, axes)
    return figure
