"""Compare ways to forget less: run every variant of a study over several seeds and write one table.

    python -m scripts.forgetting_study experiments/forgetting_mini --seeds 5 [--mirror MIRROR]

The folder has `study.yaml`: `overrides` of all runs, `training` overrides of the trained ones, the values of the
training-free `baselines`, and `variants`. A variant is a run (`overrides`), or a gate that is fitted on the adapter of
another variant (`fitted_on`); the names in its `baselines` are evaluated on it. `harness` names tasks of
lm-evaluation-harness in `harness/` of the folder; the paths in their yamls are relative to the working directory, the
checkout. Finished runs are used again, so that an interrupted study continues. Writes table.md, table.csv,
tradeoff.png and commands.md into the folder.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
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
from imsm.reporting.tradeoff import OWN_ADAPTER
from imsm.reporting.tradeoff_advice import Advice, advise, draw_advice
from imsm.utils.errors import RunError, UserError
from imsm.utils.formatting import format_duration
from imsm.utils.hashing import hash_json
from imsm.utils.paths import runs_root


@dataclass(kw_only=True)
class Variant:
    """A run of a study, or a gate that is fitted on the adapter of another variant."""

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
    variants: list[Variant]
    baselines: dict[str, str] = field(default_factory=dict)  # values of a baseline, comma-separated
    harness: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class Job:
    """A variant with one seed: its folder, the stream that responds, and the arguments of its commands."""

    variant: Variant
    seed: int
    folder: Path
    stream: str
    commands: list[list[str]]


COMMANDS: dict[str, Callable[[list[str]], int | None]] = {
    "run": run_command.main,
    "fit-gate": fit_gate.main,
    "baselines": baselines.main,
    "lm-eval": lm_eval.main,
}


def load_study(folder: Path) -> Study:
    """Return the study of a folder.

    Raises:
        UserError: It has none or a wrong one: an unknown key, a label with a colon, an unknown `fitted_on`.
    """
    file = folder / "study.yaml"
    if not file.is_file():
        raise UserError(f"{folder}: has no study.yaml")
    try:
        values = yaml.safe_load(file.read_text(encoding="utf-8"))
        study = Study(**{**values, "variants": [Variant(**variant) for variant in values["variants"]]})
    except (yaml.YAMLError, TypeError, KeyError, ValueError) as error:
        raise UserError(
            f"{file}: is not a study ({' '.join(str(error).split())}); see experiments/*/study.yaml"
        ) from error
    # the names of baselines follow a colon
    if wrong := [variant.label for variant in study.variants if ":" in variant.label]:
        raise UserError(f"{file}: label={wrong[0]}: must have no colon")
    known: set[str | None] = {None}
    for variant in study.variants:
        if variant.fitted_on not in known:
            raise UserError(f"{file}: fitted_on={variant.fitted_on}: is not the label of a variant before it")
        known.add(variant.label)
    return study


def training_overrides(study: Study, variant: Variant) -> list[str]:
    """Return the overrides of a variant's training; the variant's own replace those of the study."""
    own = {text.partition("=")[0] for text in variant.overrides}
    return [*(text for text in study.training if text.partition("=")[0] not in own), *variant.overrides]


def run_seed(study: Study, *, seed: int, source: Path, execute: bool) -> list[Job]:
    """Return the jobs of a seed, and ``execute`` what is missing of them.

    The folder of a fitted gate depends on the finished run of its adapter, so that jobs are planned one by one.
    """
    jobs: dict[str, Job] = {}
    started = time.monotonic()
    for variant in study.variants:
        job = plan_job(study, variant, seed=seed, adapter=jobs.get(variant.fitted_on or ""), source=source)
        jobs[variant.label] = job
        for command in job.commands if execute else ():
            if command[0] == "lm-eval" and _is_evaluated(study, job, command, source=source):
                continue
            if code := COMMANDS[command[0]](command[1:]):
                raise RunError(f"{shlex.join(command)}: exit code {code}")
        if execute:
            print(f"seed {seed}, {variant.label}: {time.monotonic() - started:.0f} s", flush=True)
    return list(jobs.values())


def plan_job(study: Study, variant: Variant, *, seed: int, adapter: Job | None, source: Path) -> Job:
    """Return the folder and the commands of a variant; ``adapter`` is the finished job that a gate is fitted on."""
    if adapter is None:
        overrides = [f"seed={seed}", *study.overrides, *training_overrides(study, variant)]
        config = load_config(ConfigComposer().compose(overrides), config_dir=None)
        commands = [["run", *overrides]]
    else:
        saved = saved_config(adapter.folder, config_dir=None)
        config = fit_gate_config(adapter.folder, saved, overrides=variant.overrides)
        commands = [["fit-gate", adapter.folder.name, *variant.overrides]]
    folder = run_dir_of(config, runs_root=runs_root())
    for name in variant.baselines:
        values = ["--values", study.baselines[name]] if name in study.baselines else []
        commands.append(["baselines", folder.name, "--baselines", name, *values])
    if study.harness:
        include = str(source / "harness")
        tasks = ",".join(study.harness)
        commands.append(["lm-eval", folder.name, "--tasks", tasks, "--include-path", include, "--batch-size", "32"])
        if variant is study.variants[0]:
            commands.append([*commands[-1], "--stream", "original"])
    return Job(variant=variant, seed=seed, folder=folder, stream=config.method.stream, commands=commands)


def _is_evaluated(study: Study, job: Job, command: Sequence[str], *, source: Path) -> bool:
    """Whether the results of a command of the harness are newer than its tasks."""
    file = harness_file(study, job.folder, "original" if "original" in command else job.stream)
    changed = max(path.stat().st_mtime for path in (source / "harness").iterdir())
    return file.exists() and file.stat().st_mtime > changed


def harness_file(study: Study, folder: Path, stream: str) -> Path:
    """Return the results of `imsm lm-eval` of a run."""
    return folder / f"harness-{stream}-{'_'.join(study.harness)}-default.json"


def run_in_processes(arguments: Sequence[str], *, seeds: int, processes: int) -> None:
    """Run each seed in a separate process, ``processes`` at a time, which share the cores.

    Raises:
        RunError: The process of a seed failed or was interrupted; no further one was started.
    """
    threads = str(max(1, (os.cpu_count() or 1) // processes))
    environment = {"OMP_NUM_THREADS": threads, **os.environ}
    failed: dict[int, int] = {}

    def run(seed: int) -> None:
        if not failed:
            command = [sys.executable, "-m", "scripts.forgetting_study", *arguments, "--only-seed", str(seed)]
            if code := subprocess.run(command, env=environment, check=False).returncode:
                failed[seed] = code

    with ThreadPoolExecutor(processes) as pool:
        for seed in range(seeds):
            pool.submit(run, seed)
    if failed:
        codes = ", ".join(f"seed {seed}: exit code {code}" for seed, code in failed.items())
        raise RunError(f"{codes}; the same command repeats what is missing")


def harness_scores(file: Path) -> dict[str, float]:
    """Return the score of each task in points: its first metric."""
    results = json.loads(file.read_text(encoding="utf-8"))["results"]
    found = {}
    for task, metrics in results.items():
        key = next(key for key in metrics if "," in key and "_stderr" not in key)
        found[task] = 100 * metrics[key]
    return found


def study_scores(jobs: Sequence[Job]) -> pandas.DataFrame:
    """Return one row per variant or baseline and task with the mean score over seeds and its interval, in points."""
    scores = average_over_seeds(prediction_table([job.folder for job in jobs]))
    labels = {job.folder.name: job.variant.label for job in jobs}
    extra = {(job.folder.name, each.label) for job in jobs for each in baselines_of(job.folder)}
    # the adapter of a fitted gate has a row already: that of the variant it was fitted on
    scores = scores[scores["method"] != OWN_ADAPTER].reset_index(drop=True)
    names = [
        "original" if method == "original" else labels[run] + (f": {method}" if (run, method) in extra else "")
        for run, method in zip(scores["run"], scores["method"], strict=True)
    ]
    scores.insert(0, "variant", names)
    return scores.drop(columns=["run", "method"])


def study_table(study: Study, jobs: Sequence[Job], scores: pandas.DataFrame, advice: Advice) -> Table:
    """Return one row per variant and baseline: scores, mean retention, forward passes per token, time of training."""
    candidates = {each.label: each for each in advice.candidates}
    order = {
        label: number for number, label in enumerate(["original", *(variant.label for variant in study.variants)])
    }
    rows = []
    for variant in sorted(dict.fromkeys(scores["variant"]), key=lambda variant: order[variant.split(":")[0]]):
        row = {"method": variant}
        for task in dict.fromkeys(scores["task"]):
            found = scores[(scores["variant"] == variant) & (scores["task"] == task)]
            row[task] = _interval(found.iloc[0]) if len(found) else MISSING
        of_variant = [job for job in jobs if job.variant.label == variant]
        files = [harness_file(study, job.folder, job.stream) for job in of_variant]
        if variant == "original":
            files = [harness_file(study, jobs[0].folder, "original")]
        for task in study.harness:
            row[task] = _over_seeds([harness_scores(file)[task] for file in files if file.exists()])
        candidate = candidates.get(variant)
        row["kept, %"] = _over_seeds(candidate.kept) if candidate else MISSING
        row["streams"] = f"{candidate.streams:.2g}" if candidate else "1"
        trainings = [read_result(job.folder)["training"] for job in of_variant]
        seconds = [training["seconds"] for training in trainings if training]
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
    """Return the candidates under the names of the variants."""
    first = jobs[0].folder
    among = {job.folder for job in jobs}
    advice = advise(first, read_result(first), runs_root=runs_root(), keep=95.0, target_at_least=None, among=among)

    def key(result: Mapping[str, Any]) -> str:
        return hash_json(identity_without_seed({k: v for k, v in result["identity"].items() if k != "baseline"}))

    labels = {key(read_result(job.folder)): job.variant.label for job in jobs}
    sentences = advice.sentences
    # the longest first, because a run's label is the beginning of those of its baselines
    for candidate in sorted(advice.candidates, key=lambda each: -len(each.label)):
        baseline = candidate.label.partition(": ")[2]
        label = labels[key(candidate.results[0])] + (f": {baseline}" if baseline else "")
        sentences = [text.replace(candidate.label, label) for text in sentences]
        candidate.label = label
    return replace(advice, sentences=sentences)


def write_study(study: Study, jobs: Sequence[Job], *, folder: Path) -> None:
    """Write the table, the plot and the commands of the finished jobs."""
    advice, scores = study_advice(jobs), study_scores(jobs)
    table = study_table(study, jobs, scores, advice)
    notes = [
        f"Seeds: {len({job.seed for job in jobs})}. Points; brackets: 95 % intervals over seeds and examples, in the "
        f"columns {join_names(['kept', *study.harness])} over seeds. "
        f"Kept: mean retention of {join_names(advice.informative)}, on which the original is above chance by two "
        "standard errors. Streams: forward passes per generated token. Training: mean over seeds.",
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
    parser.add_argument("--jobs", type=int, default=1, help="seeds at a time, each in its own process")
    parser.add_argument("--mirror", type=Path, help="folder with the datasets in the Hub's layout; default: the Hub")
    parser.add_argument("--only-seed", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    study, started = load_study(options.folder), time.monotonic()
    if options.mirror is not None:
        study.overrides += ["data.source=mirror", f"data.mirror_dir={options.mirror.absolute()}"]
    if options.only_seed is not None:
        run_seed(study, seed=options.only_seed, source=options.folder, execute=True)
        return
    in_processes = options.jobs > 1
    if in_processes:
        run_in_processes(arguments, seeds=options.seeds, processes=options.jobs)
    jobs: list[Job] = []
    for seed in range(options.seeds):
        jobs += run_seed(study, seed=seed, source=options.folder, execute=not in_processes)
        if not in_processes or seed == options.seeds - 1:
            write_study(study, jobs, folder=options.folder)
    print(f"{options.folder / 'table.md'}: {time.monotonic() - started:.0f} s")


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except (RunError, UserError) as error:
        print(f"imsm: {error}", file=sys.stderr)
        sys.exit(2 if isinstance(error, UserError) else 1)
    except KeyboardInterrupt:
        print("interrupted; the same command continues", file=sys.stderr)
        sys.exit(130)
