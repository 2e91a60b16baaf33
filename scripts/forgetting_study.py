"""Compare ways to forget less: run every arm of a study over several seeds and write one table.

    python -m scripts.forgetting_study experiments/forgetting_mini --seeds 5 [--mirror MIRROR]

The folder has `study.yaml`: `overrides` of all runs, `training` overrides of the trained ones, the values of the
training-free `baselines`, and `arms`. An arm is a run (`overrides`), or a gate fitted on the adapter of another arm
(`fitted_on`); the names in its `baselines` are evaluated on it. `harness` names tasks of lm-evaluation-harness in
`harness/` of the folder, whose prompts have forms that no training text has. Finished runs are used again, so that an
interrupted study continues. Writes table.md, table.csv, tradeoff.png and commands.md into the folder.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pandas
import yaml

from imsm.cli import baselines, fit_gate, lm_eval
from imsm.cli import run as run_command
from imsm.config.compose import ConfigComposer
from imsm.config.identity import identity_without_seed
from imsm.config.validate import load_config
from imsm.evaluation.result import read_result
from imsm.evaluation.statistics.intervals import student_ci
from imsm.pipeline.fit_gate import fit_gate_config, saved_config
from imsm.pipeline.run_status import run_dir_of
from imsm.reporting.prediction_table import average_over_seeds, prediction_table
from imsm.reporting.render.formatting import MISSING, format_interval, format_number, join_names
from imsm.reporting.render.table import Table
from imsm.reporting.runs import baselines_of
from imsm.reporting.tradeoff_advice import Advice, advise, draw_advice
from imsm.utils.formatting import format_duration
from imsm.utils.hashing import hash_json
from imsm.utils.paths import runs_root


@dataclass(kw_only=True)
class Arm:
    """A run of a study, or a gate that is fitted on the adapter of another arm."""

    label: str
    overrides: list[str] = field(default_factory=list)
    fitted_on: str | None = None
    baselines: list[str] = field(default_factory=list)


@dataclass(kw_only=True)
class Study:
    """The settings of `study.yaml`."""

    title: str
    overrides: list[str]
    training: list[str]
    arms: list[Arm]
    baselines: dict[str, str] = field(default_factory=dict)  # values of a baseline, comma-separated
    harness: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class Job:
    """An arm with one seed: its folder, and the arguments of its commands."""

    arm: Arm
    seed: int
    folder: Path
    commands: list[list[str]]


def load_study(folder: Path) -> Study:
    """Return the study of a folder."""
    values = yaml.safe_load((folder / "study.yaml").read_text(encoding="utf-8"))
    return Study(**{**values, "arms": [Arm(**arm) for arm in values["arms"]]})


def training_overrides(study: Study, arm: Arm) -> list[str]:
    """Return the overrides of an arm's training; the arm's own replace those of the study."""
    own = {text.partition("=")[0] for text in arm.overrides}
    return [*(text for text in study.training if text.partition("=")[0] not in own), *arm.overrides]


def run_job(study: Study, arm: Arm, *, seed: int, folders: dict[str, Path], source: Path) -> Job:
    """Run what is missing of an arm with a seed; ``folders`` are those of the arms of the seed before it."""
    if arm.fitted_on is None:
        overrides = [f"seed={seed}", *study.overrides, *training_overrides(study, arm)]
        folder = run_dir_of(load_config(ConfigComposer().compose(overrides), config_dir=None), runs_root=runs_root())
        commands = [["run", *overrides]]
        run_command.main(overrides)
    else:
        adapter = folders[arm.fitted_on]
        config = fit_gate_config(adapter, saved_config(adapter, config_dir=None), overrides=arm.overrides)
        folder = run_dir_of(config, runs_root=runs_root())
        commands = [["fit-gate", adapter.name, *arm.overrides]]
        fit_gate.main(commands[0][1:])
    for name in arm.baselines:
        values = ["--values", study.baselines[name]] if name in study.baselines else []
        commands.append(["baselines", folder.name, "--baselines", name, *values])
        baselines.main(commands[-1][1:])
    if study.harness:
        tasks = ",".join(study.harness)
        include = str(source / "harness")
        commands.append(["lm-eval", folder.name, "--tasks", tasks, "--include-path", include, "--batch-size", "32"])
        if not harness_file(folder).exists():
            lm_eval.main([*commands[-1][1:], "--output", str(harness_file(folder))])
        if arm is study.arms[0] and not harness_file(folder, "original").exists():
            output = str(harness_file(folder, "original"))
            lm_eval.main([*commands[-1][1:], "--stream", "original", "--output", output])
    return Job(arm=arm, seed=seed, folder=folder, commands=commands)


def harness_file(folder: Path, stream: str = "own") -> Path:
    """Return the results of lm-evaluation-harness of a run."""
    return folder / f"harness-study-{stream}.json"


def harness_scores(file: Path) -> dict[str, float]:
    """Return the score of each task in points: its first metric."""
    results = json.loads(file.read_text(encoding="utf-8"))["results"]
    found = {}
    for task, metrics in results.items():
        key = next(key for key in metrics if "," in key and "_stderr" not in key)
        found[task] = 100 * metrics[key]
    return found


def study_scores(jobs: Sequence[Job]) -> pandas.DataFrame:
    """Return one row per arm or baseline and task with the mean score over seeds and its interval, in points."""
    scores = average_over_seeds(prediction_table([job.folder for job in jobs]))
    labels = {job.folder.name: job.arm.label for job in jobs}
    extra = {(job.folder.name, each.label) for job in jobs for each in baselines_of(job.folder)}
    names = [
        "original" if method == "original" else labels[run] + (f": {method}" if (run, method) in extra else "")
        for run, method in zip(scores["run"], scores["method"], strict=True)
    ]
    scores.insert(0, "arm", names)
    return scores.drop(columns=["run", "method"])


def study_table(study: Study, jobs: Sequence[Job], scores: pandas.DataFrame, advice: Advice) -> Table:
    """Return one row per arm and baseline: scores, mean retention, forward passes per token, time of training."""
    candidates = {each.label: each for each in advice.candidates}
    order = {label: number for number, label in enumerate(["original", *(arm.label for arm in study.arms)])}
    rows = []
    for arm in sorted(dict.fromkeys(scores["arm"]), key=lambda arm: order[arm.split(":")[0]]):
        row = {"method": arm}
        for task in dict.fromkeys(scores["task"]):
            found = scores[(scores["arm"] == arm) & (scores["task"] == task)]
            row[task] = _interval(found.iloc[0]) if len(found) else MISSING
        of_arm = [job for job in jobs if job.arm.label == arm]
        files = [harness_file(job.folder) for job in of_arm]
        if arm == "original":
            files = [harness_file(jobs[0].folder, "original")]
        for task in study.harness:
            row[task] = _over_seeds([harness_scores(file)[task] for file in files if file.exists()])
        candidate = candidates.get(arm)
        row["kept, %"] = _over_seeds(candidate.kept) if candidate else MISSING
        row["streams"] = f"{candidate.streams:.2g}" if candidate else "1"
        seconds = [read_result(job.folder)["training"]["seconds"] for job in of_arm]
        row["training"] = format_duration(sum(seconds) / len(seconds)) if seconds else MISSING
        rows.append(row)
    return Table.from_records(rows)


def _interval(row: Any) -> str:
    return format_interval(row["score"], row["ci_low"], row["ci_high"])


def _over_seeds(points: Sequence[float]) -> str:
    if not points:
        return MISSING
    found = student_ci(points)
    return format_interval(found.estimate, found.low, found.high) if len(points) > 1 else format_number(points[0])


def study_advice(jobs: Sequence[Job]) -> Advice:
    """Return the candidates under the names of the arms, without runs that are not of the study."""
    first = jobs[0].folder
    advice = advise(first, read_result(first), runs_root=runs_root(), keep=95.0, target_at_least=None)

    def key(result: Mapping[str, Any]) -> str:
        return hash_json(identity_without_seed({k: v for k, v in result["identity"].items() if k != "baseline"}))

    labels = {key(read_result(job.folder)): job.arm.label for job in jobs}
    kept = [each for each in advice.candidates if key(each.results[0]) in labels]
    sentences = advice.sentences
    # the longest first, because a run's label is the beginning of those of its baselines
    for candidate in sorted(kept, key=lambda each: -len(each.label)):
        baseline = candidate.label.partition(": ")[2]
        label = labels[key(candidate.results[0])] + (f": {baseline}" if baseline else "")
        sentences = [text.replace(candidate.label, label) for text in sentences]
        candidate.label = label
    return replace(advice, candidates=kept, sentences=sentences)


def write_study(study: Study, jobs: Sequence[Job], *, folder: Path) -> None:
    """Write the table, the plot and the commands of the finished jobs."""
    advice, scores = study_advice(jobs), study_scores(jobs)
    table = study_table(study, jobs, scores, advice)
    notes = [
        f"Seeds: {len({job.seed for job in jobs})}. Points; brackets: 95 % intervals over seeds and examples. "
        f"Kept: mean retention of {join_names(advice.informative)}, on which the original is above chance by two "
        "standard errors. Streams: forward passes per generated token. Training: mean over seeds.",
        *(
            [f"{join_names(study.harness)}: lm-evaluation-harness, forms that no training text has."]
            * bool(study.harness)
        ),
        *advice.sentences,
        *study.notes,
    ]
    text = [f"# {study.title}", table.to_markdown(), *notes, "![trade-off](tradeoff.png)"]
    (folder / "table.md").write_text("\n\n".join(text) + "\n", encoding="utf-8")
    scores.to_csv(folder / "table.csv", index=False, float_format="%.6g")
    draw_advice(advice).savefig(folder / "tradeoff.png", dpi=130, metadata={"Software": None})
    lines = [shlex.join(["imsm", *map(_shown, command)]) for job in jobs for command in job.commands]
    (folder / "commands.md").write_text("```bash\n" + "\n".join(lines) + "\n```\n", encoding="utf-8")


def _shown(argument: str) -> str:
    return "data.mirror_dir=MIRROR" if argument.startswith("data.mirror_dir=") else argument


def main(arguments: list[str]) -> None:
    """Run the study seed by seed and write its tables after each seed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="folder with study.yaml")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--mirror", type=Path, help="folder with the datasets in the Hub's layout; default: the Hub")
    options = parser.parse_args(arguments)
    study, started = load_study(options.folder), time.monotonic()
    if options.mirror is not None:
        study.overrides += ["data.source=mirror", f"data.mirror_dir={options.mirror.absolute()}"]
    jobs: list[Job] = []
    for seed in range(options.seeds):
        folders: dict[str, Path] = {}
        for arm in study.arms:
            job = run_job(study, arm, seed=seed, folders=folders, source=options.folder)
            folders[arm.label] = job.folder
            jobs.append(job)
            print(f"seed {seed}, {arm.label}: {time.monotonic() - started:.0f} s", flush=True)
        write_study(study, jobs, folder=options.folder)
    print(f"{options.folder / 'table.md'}: {time.monotonic() - started:.0f} s")


if __name__ == "__main__":
    main(sys.argv[1:])
