"""The parts of a report card after its scores, each a text, a table of texts, a picture."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import TYPE_CHECKING, Any

from imsm.evaluation.retention import Transitions
from imsm.evaluation.statistics import Interval, student_t
from imsm.report.arms import Arm
from imsm.report.comparison import comparable, headline
from imsm.report.contrasts import Contrast, Kept, adjust, contrast, kept, total_of
from imsm.report.frontier import Curve, Trade, curves, trades
from imsm.report.telemetry import alarms, gate_table

if TYPE_CHECKING:
    import pandas
    from matplotlib.figure import Figure

ALPHA = 0.05


@dataclass(kw_only=True)
class Picture:
    """A figure that is drawn when it is asked for; ``alt`` says what it shows."""

    name: str
    alt: str
    draw: Callable[[], Figure]


@dataclass(kw_only=True)
class Section:
    """A titled part of the card. ``table``: cells as texts; ``name`` is that of its CSV file."""

    name: str
    title: str
    lines: list[str] = field(default_factory=list)
    table: pandas.DataFrame | None = None
    brief: list[str] = field(default_factory=list)
    """The columns that a terminal shows; none: it does not show this part."""
    numbers: int = 1
    """From which column on the table's cells are numbers."""
    pictures: list[Picture] = field(default_factory=list)
    heat: list[HeatText] = field(default_factory=list)


@dataclass(kw_only=True)
class HeatText:
    """A generated text with the original memory's weight at each token."""

    title: str
    pieces: list[str]
    weights: list[float]


@dataclass(kw_only=True)
class Evidence:
    """What the card rests on: arms, controls, other seeds, and what was computed of them."""

    arms: list[Arm]
    controls: list[Arm]
    seeds: dict[str, dict[int, Mapping[str, Any]]]
    """By arm's label, the results of runs that differ in nothing but the seed."""
    target: str | None
    tasks: list[str]
    metrics: dict[str, str]
    marked: set[str]
    contrasts: list[Contrast]
    kept: list[Kept]
    trades: list[Trade]
    curves: list[Curve]

    @property
    def focus(self) -> Arm:
        """The arm that the card is about."""
        return self.arms[-1]

    @property
    def forgetting(self) -> list[str]:
        """The tests that count: no arm was trained on them."""
        return [t for t in self.tasks if t != self.target and t not in self.marked]


def gather(
    arms: Sequence[Arm],
    controls: Sequence[Arm] = (),
    seeds: Mapping[str, dict[int, Mapping[str, Any]]] | None = None,
) -> Evidence:
    """Compute everything that a card shows beside its scores.

    Args:
        arms: the original first, the run that the card is about last.
        controls: of that run.
        seeds: by arm's label, results by seed.
    """
    focus = arms[-1]
    entries = focus.result["evaluation"]["tasks"]
    target = next((name for name, e in entries.items() if e["role"] == "target"), None)
    if focus.method == "original":
        target = None
    tasks = sorted(entries, key=lambda name: name != target)
    metrics = {task: headline(entries[task]) for task in tasks}
    marked = {
        task
        for task in tasks
        for arm in arms
        if arm.entry(task).get("trained_on") and task != target
    }
    by_method = {arm.method: arm for arm in arms}
    contrasts = []
    for task in tasks:
        for arm in arms:
            for name in ("original", "peft"):
                reference = by_method.get(name)
                if reference is None or arm is reference or arm.method == "original":
                    continue
                if not comparable(arm.result, reference.result, task):
                    continue
                found = contrast(
                    arm, reference, task=task, metric=metrics[task], marked=task in marked
                )
                contrasts += [] if found is None else [found]
    adjust(contrasts)
    original = by_method.get("original")
    changed = [arm for arm in arms if arm.method != "original"]
    made = [
        kept(arm, original, task=task, metric=metrics[task], marked=task in marked)
        for task in tasks
        for arm in changed
        if original is not None
    ]
    forgetting = [task for task in tasks if task != target and task not in marked]
    places = trades(arms, controls, target=target, metrics=metrics, forgetting=forgetting)
    return Evidence(
        arms=list(arms),
        controls=list(controls),
        seeds=dict(seeds or {}),
        target=target,
        tasks=tasks,
        metrics=metrics,
        marked=marked,
        contrasts=contrasts,
        kept=[each for each in made if each is not None],
        trades=places,
        curves=curves(places),
    )


def sections_of(evidence: Evidence) -> list[Section]:
    """All parts that there is something to say in, in the card's order."""
    parts = [
        _intervals(evidence),
        _differences(evidence),
        _kept(evidence),
        _averages(evidence),
        _trade(evidence),
        _controls(evidence),
        _seeds(evidence),
        _answers(evidence),
        _gate(evidence),
        _training(evidence),
        _protocols(evidence),
    ]
    return [part for part in parts if part is not None]


def _intervals(evidence: Evidence) -> Section | None:
    rows = []
    for task in evidence.tasks:
        metric = evidence.metrics[task]
        row = {"task": _task(evidence, task), "metric": metric}
        for arm in evidence.arms:
            found = total_of(arm, task, metric)
            row[arm.label] = "–" if found is None else interval(found[1])
        rows.append(row)
    if not any(value != "–" for row in rows for value in list(row.values())[2:]):
        return None
    from imsm.report.figures import draw_scores

    picture = Picture(
        name="scores",
        alt="Scores of all arms per task with their 95 % intervals",
        draw=lambda: draw_scores(evidence),
    )
    lines = [
        "In points, with 95 % intervals: a bootstrap over items, whole passages where items share "
        "one. They say how other items would come out, not how another training would."
    ]
    return _section("scores", "Scores and their intervals", rows, lines, 2, [picture])


def _differences(evidence: Evidence) -> Section | None:
    if not evidence.contrasts:
        return None
    family = sum(each.adjusted is not None for each in evidence.contrasts)
    rows = [
        {
            "task": _task(evidence, each.task),
            "arm − reference": f"{each.arm} − {each.reference}",
            "difference": interval(each.difference, signed=True),
            "better : worse": _ratio(each),
            "p, McNemar": p_value(each.test.p_value if each.test else None),
            "p, Holm": p_value(each.adjusted),
            "detectable": number(each.least),
        }
        for each in evidence.contrasts
    ]
    from imsm.report.figures import draw_differences

    picture = Picture(
        name="differences",
        alt="Differences of arms to their references per task with 95 % intervals",
        draw=lambda: draw_differences(evidence),
    )
    lines = [
        "Both arms on the same items, paired: difference in points with its 95 % interval "
        "(bootstrap, clustered by passage); items that one arm alone got right; McNemar's exact p, "
        f"and Holm's over the family of {family} tests on this card (every task and reference "
        "with right or wrong answers, marked cells left out). Detectable: the least difference "
        "that so many items show with a power of 80 %."
    ]
    found = _section("differences", "Differences", rows, lines, 2, [picture])
    if found is not None:
        found.brief = ["task", "arm − reference", "difference", "p, Holm"]
    return found


def _kept(evidence: Evidence) -> Section | None:
    if not evidence.kept:
        return None
    rows = [
        {
            "task": _task(evidence, each.task),
            "arm": each.arm,
            **_shares(each.counts),
            "chance": number(each.chance),
            "retention": _retention(each, evidence),
        }
        for each in evidence.kept
    ]
    from imsm.report.figures import draw_kept

    picture = Picture(
        name="kept",
        alt="Shares of items kept, forgotten, learned and never known, per task and arm",
        draw=lambda: draw_kept(evidence),
    )
    lines = [
        "Of the original's right answers some are kept and some forgotten; of its wrong ones some "
        "learned, the others never known. Retention is 100 (s − c)/(b − c) %: the arm's score s "
        "and the original's b above the chance level c; undefined where the original is not above "
        "chance by two standard errors."
    ]
    return _section("kept", "Kept, forgotten, learned", rows, lines, 2, [picture])


def _averages(evidence: Evidence) -> Section | None:
    places = {trade.label: trade for trade in evidence.trades}
    shown = [each for each in evidence.tasks if each != evidence.target]
    if not shown:
        return None
    rows = []
    for arm in evidence.arms:
        row = {
            "arm": arm.label,
            "retention average": number(_mean(arm, evidence, evidence.forgetting)),
            "the paper's average": number(_mean(arm, evidence, evidence.tasks)),
        }
        if places:
            trade = places[arm.label]
            row |= {
                "plasticity": percent(trade.plasticity),
                "stability": percent(trade.stability),
                "harmonic": percent(trade.harmonic),
            }
        rows.append(row)
    lines = [
        f"The retention average is over {_listed(evidence.forgetting)}: forgetting tests that no "
        "arm was trained on. The paper's average (its tables 2 and 3) counts the target too"
        + (f", and {_listed(sorted(evidence.marked))}, marked here" if evidence.marked else "")
        + ": it mixes what was learned with what was kept."
    ]
    if places:
        lines.append(
            "Plasticity: the share of PEFT's gain on the target, undefined where that gain's 95 % "
            "interval holds 0; stability: the mean retention."
        )
    return _section("averages", "Averages", rows, lines, 1, [])


def _trade(evidence: Evidence) -> Section | None:
    placed = [t for t in evidence.trades if t.target is not None and t.stability is not None]
    if len(placed) < 2:
        return None
    lines = ["Up and right is better: more of the target learned, more of the rest kept."]
    for curve in evidence.curves:
        name = curve.control.replace("_", " ")
        lines.append(
            f"The {name} over {curve.letter} ({len(curve.trades)} points with its ends) spans "
            + (
                f"a hypervolume of {curve.area:.3f} (1: all learned, all kept)."
                if any(trade.plasticity is not None for trade in curve.trades)
                else "no hypervolume, since plasticity is undefined."
            )
        )
        for trade in placed:
            if trade.control is not None or trade.method in ("original", "peft"):
                continue
            found = curve.stability_at(trade.target) if trade.target is not None else None
            reached = "does not reach it" if found is None else f"keeps {found:.1f} %"
            lines.append(
                f"At {trade.label}'s target score ({number(trade.target)}) the {name} {reached}; "
                f"{trade.label} keeps {percent(trade.stability)}."
            )
    if not evidence.curves:
        lines.append(
            "The curves of the controls come with `python -m imsm.controls --run <run folder>`."
        )
    from imsm.report.figures import draw_trade

    picture = Picture(
        name="trade",
        alt="Plasticity against stability of all arms and controls",
        draw=lambda: draw_trade(evidence),
    )
    return Section(
        name="trade", title="Learning against forgetting", lines=lines, pictures=[picture]
    )


def _controls(evidence: Evidence) -> Section | None:
    if not evidence.controls:
        return None
    places = {trade.label: trade for trade in evidence.trades}
    rows = []
    for arm in [*evidence.arms, *evidence.controls]:
        row = {"arm": arm.label}
        for task in evidence.tasks:
            value = arm.entry(task).get("metrics", {}).get(evidence.metrics[task])
            row[_task(evidence, task)] = number(value)
        row["retention average"] = number(_mean(arm, evidence, evidence.forgetting))
        if arm.label in places:
            trade = places[arm.label]
            row |= {"plasticity": percent(trade.plasticity), "stability": percent(trade.stability)}
        rows.append(row)
    lines = [
        "What two streams, or one adapter, give without a trained gate. A router that asks which "
        "task it is (oracle) keeps everything by construction: it is a bound, no method."
    ]
    found = _section("controls", "Controls without training", rows, lines, 1, [])
    if found is not None:
        target = [] if evidence.target is None else [_task(evidence, evidence.target)]
        found.brief = ["arm", *target, "retention average"] + ["stability"] * bool(places)
    return found


def _seeds(evidence: Evidence) -> Section | None:
    peft = next((arm for arm in evidence.arms if arm.method == "peft"), None)
    rows = []
    for arm in evidence.arms:
        runs = evidence.seeds.get(arm.label, {})
        for task in evidence.tasks if len(runs) > 1 else []:
            scores = _scores(runs, task, evidence.metrics[task])
            row = {
                "task": _task(evidence, task),
                "arm": arm.label,
                "seeds": str(len(scores)),
                "mean": number(fmean(scores.values())) if scores else "–",
                "lowest": number(min(scores.values(), default=None)),
                "highest": number(max(scores.values(), default=None)),
                "t to PEFT": "–",
                "p, Student": "–",
            }
            if peft is not None and arm is not peft:
                others = _scores(evidence.seeds.get(peft.label, {}), task, evidence.metrics[task])
                found = student_t([*scores.values()], [*others.values()]) if others else None
                if found is not None and found.t is not None:
                    row |= {"t to PEFT": f"{found.t:+.2f}", "p, Student": p_value(found.p_value)}
            rows.append(row)
    if not rows:
        return None
    lines = ["Runs that differ in the seed alone; Student's t-test over seeds is the paper's test."]
    return _section("seeds", "Over seeds", rows, lines, 2, [])


def _answers(evidence: Evidence) -> Section | None:
    rows = []
    for task in evidence.tasks:
        for arm in evidence.arms:
            entry = arm.entry(task)
            if not entry:
                continue
            items = arm.items(task)
            per_token = None
            if items is not None and items["gold_tokens"].notna().any():
                per_token = items["gold_loglik"].sum() / items["gold_tokens"].sum()
            rows.append(
                {
                    "task": _task(evidence, task),
                    "arm": arm.label,
                    "items": str(entry["items"]),
                    "unparsed": str(entry["unparsed"]),
                    "cut off": str(entry["truncated"]),
                    "tokens an answer": number(entry["new_tokens"] / max(1, entry["items"])),
                    "ln p of the gold": number(entry.get("gold_loglik"), places=2),
                    "per token": number(per_token, places=2),
                }
            )
    lines = [
        "Whether knowledge or only the form is lost: the likelihood of the accepted answer (the "
        "likeliest, without the end of text) needs no generation. `contain` rewards long answers."
    ]
    return _section("answers", "Answers", rows, lines, 2, [])


def _gate(evidence: Evidence) -> Section | None:
    gated = [
        arm for arm in evidence.arms if arm.result["identity"]["method"]["stream"] == "interwoven"
    ]
    rows, lines, pictures, heat = [], [], [], []
    for arm in gated:
        table = gate_table(arm, evidence.tasks, metric=evidence.metrics)
        for row in table.to_dict("records"):
            values = {k: number(v, places=3) for k, v in row.items() if k not in ("task", "items")}
            rows.append(
                {"task": _task(evidence, row["task"]), "arm": arm.label, "items": str(row["items"])}
                | values
            )
        lines += alarms(arm, evidence.tasks, start=_start(arm))
        heat += _heat(evidence, arm)
    if not rows:
        return None
    from imsm.report.figures import draw_gate

    pictures.append(
        Picture(
            name="gate",
            alt="The gate over items, along the answer, and of right and wrong answers",
            draw=lambda: draw_gate(evidence, gated),
        )
    )
    lines.insert(
        0,
        "The weight of the original memory where the answer's tokens were chosen, a mean over "
        "dimensions: 0 is PEFT alone, 1 the original alone. auc: how well it alone tells right "
        "answers from wrong (0.5: not at all).",
    )
    found = _section("gate", "The gate", rows, lines, 2, pictures)
    if found is not None:
        found.heat = heat
    return found


def _training(evidence: Evidence) -> Section | None:
    from imsm.report.curves import read_curves

    logs = {arm.label: read_curves(arm.folder) for arm in evidence.arms if arm.result["training"]}
    logs = {label: log for label, log in logs.items() if len(log) > 1}
    if not logs:
        return None
    from imsm.report.figures import draw_training

    picture = Picture(
        name="training",
        alt="Loss and gate over the steps of training",
        draw=lambda: draw_training(logs, evidence),
    )
    return Section(name="training", title="Training", pictures=[picture])


def _protocols(evidence: Evidence) -> Section | None:
    rows = []
    for task in evidence.tasks:
        named = evidence.focus.entry(task).get("protocols", {})
        for protocol, kept_by in named.items():
            for metric in kept_by["metrics"]:
                row = {"task": _task(evidence, task), "protocol": protocol, "metric": metric}
                for arm in evidence.arms:
                    scores = arm.entry(task).get("protocols", {}).get(protocol, {})
                    row[arm.label] = number(scores.get("metrics", {}).get(metric))
                rows.append(row)
    lines = [
        "The released code's metrics stand apart: they are shown to compare with its numbers, and "
        "never mixed with the clean ones."
    ]
    return _section("protocols", "All metrics by protocol", rows, lines, 3, []) if rows else None


# ---------------------------------------------------------------------- texts


def interval(found: Interval, *, signed: bool = False) -> str:
    """An estimate with its bounds: ``61.3 [58.0, 64.5]``."""
    mark = "+" if signed else ""
    texts = [f"{value:{mark}.1f}" for value in (found.estimate, found.low, found.high)]
    return "{} [{}, {}]".format(*texts).replace("-", "−")


def number(value: float | None, *, places: int = 1) -> str:
    """A value, or a dash for none."""
    if value is None or value != value:
        return "–"
    return f"{value:.{places}f}".replace("-", "−")


def percent(value: float | None) -> str:
    """A share in percent, or that it is undefined."""
    return "undefined" if value is None else f"{number(value)} %"


def p_value(value: float | None) -> str:
    """A p-value to three places."""
    if value is None:
        return "–"
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def _section(
    name: str,
    title: str,
    rows: Sequence[Mapping[str, str]],
    lines: list[str],
    numbers: int,
    pictures: list[Picture],
) -> Section | None:
    import pandas

    if not rows:
        return None
    table = pandas.DataFrame(rows).fillna("–")
    return Section(
        name=name, title=title, lines=lines, table=table, numbers=numbers, pictures=pictures
    )


def _task(evidence: Evidence, task: str) -> str:
    mark = " (target)" if task == evidence.target else " †" if task in evidence.marked else ""
    return f"{task}{mark}"


def _ratio(each: Contrast) -> str:
    return "–" if each.test is None else f"{each.test.better} : {each.test.worse}"


def _shares(counts: Transitions) -> dict[str, str]:
    names = ("kept", "forgotten", "learned", "never_known")
    return {name.replace("_", " "): str(getattr(counts, name)) for name in names}


def _retention(each: Kept, evidence: Evidence) -> str:
    return "target" if each.task == evidence.target else percent(each.retained)


def _mean(arm: Arm, evidence: Evidence, tasks: Sequence[str]) -> float | None:
    values = [arm.entry(task).get("metrics", {}).get(evidence.metrics[task]) for task in tasks]
    return fmean(values) if values and None not in values else None


def _scores(runs: Mapping[int, Mapping[str, Any]], task: str, metric: str) -> dict[int, float]:
    found = {}
    for seed, result in sorted(runs.items()):
        value = result["evaluation"]["tasks"].get(task, {}).get("metrics", {}).get(metric)
        if value is not None:
            found[seed] = float(value)
    return found


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names) if names else "nothing"


def _start(arm: Arm) -> float | None:
    """The gate's mean at the first step of training."""
    from imsm.report.curves import read_curves

    log = read_curves(arm.folder)
    if "gate_mean" not in log or log.empty:
        return None
    first = log["gate_mean"].dropna()
    return float(first.iloc[0]) if len(first) else None


def _heat(evidence: Evidence, arm: Arm) -> list[HeatText]:
    """Of each task the first answer that the arm got right, and the first that it got wrong."""
    found = []
    for task in evidence.tasks:
        items = arm.items(task)
        if items is None:
            continue
        told = items[[bool(pieces) for pieces in items["gate_pieces"]]]
        right = told[f"score.{evidence.metrics[task]}"] >= 0.5
        for name, rows in (("right", told[right]), ("wrong", told[~right])):
            if len(rows):
                row = rows.iloc[0]
                found.append(
                    HeatText(
                        title=f"{arm.label}, {row.name}, {name}",
                        pieces=list(row["gate_pieces"]),
                        weights=list(row["gate_tokens"]),
                    )
                )
    return found
