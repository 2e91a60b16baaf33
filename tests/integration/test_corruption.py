"""A damaged file never ends in a traceback or in other numbers.

The files of a finished run and of its neighbours are damaged in turn, and the commands that read them are run in
this process. `python -m tests.integration.test_corruption [NAME ...]` prints the table of all trials, or of those with
a NAME in the path of the file; `--all` adds damages and the other commands, `--list` shows each trial with an effect.
"""

from __future__ import annotations

import contextlib
import copy
import io
import json
import os
import shutil
import sys
import tempfile
import traceback
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import pytest
import torch
from hydra._internal.config_loader_impl import ConfigLoaderImpl

from imsm.cli.main import main
from imsm.utils.json_files import write_hashed_json
from tests.helpers.damage import DAMAGES
from tests.helpers.figures import no_figures
from tests.helpers.word_run import word_overrides, write_word_files

RUN, PEFT, ORIGINAL = "runs/*-imsm-*", "runs/*-peft-*", "runs/*-original-*"
FILES = {
    f"{RUN}/identity.json": ("run", "generate"),
    f"{RUN}/input_hashes.json": ("run", "baselines"),
    f"{RUN}/training.json": ("run", "evaluate", "baselines", "generate"),
    f"{RUN}/result.json": ("report", "baselines", "predictions", "compare"),
    f"{RUN}/log.jsonl": ("report", "run"),
    f"{RUN}/evaluation/*/predictions.jsonl": ("report", "predictions", "evaluate"),
    f"{RUN}/model/config.json": ("generate", "run"),
    f"{RUN}/model/generation_config.json": ("generate", "baselines"),
    f"{RUN}/model/hashes.json": ("generate", "evaluate"),
    f"{RUN}/model/gate.safetensors": ("generate", "run"),
    f"{RUN}/model/tokenizer.json": ("generate", "evaluate"),
    f"{RUN}/model/tokenizer_config.json": ("generate", "run"),
    f"{RUN}/model/adapter/adapter_config.json": ("generate", "baselines", "run"),
    f"{RUN}/model/adapter/adapter_model.safetensors": ("generate", "baselines", "run"),
    f"{RUN}/baselines/logit_mix-0.50/result.json": ("report", "predictions"),
    f"{RUN}/baselines/query_distances.json": ("baselines",),
    f"{RUN}/report.html": ("report", "run"),
    f"{RUN}/tables/scores.csv": ("report",),
    f"{PEFT}/result.json": ("report", "compare", "run"),
    f"{PEFT}/evaluation/*/predictions.jsonl": ("report",),
    f"{ORIGINAL}/identity.json": ("run",),
    f"{ORIGINAL}/result.json": ("compare", "report"),
    f"{ORIGINAL}/evaluation/*/predictions.jsonl": ("report", "predictions"),
    "cache/file_hashes/*.json": ("run",),
    "backbone/config.json": ("run", "generate"),
    "backbone/tokenizer.json": ("run", "baselines"),
    "backbone/model.safetensors": ("run", "generate"),
}
"""Files by their pattern, and the commands that read them."""
MAIN_DAMAGES = ("truncated", "flipped", "empty", "missing", "folder", "list", "mapping")
COMMANDS = ("run", "evaluate", "report", "baselines", "predictions", "generate", "compare")
FINE = ("repaired", "clear error", "named", "unaffected")
"""Outcomes: the file was written again; one line with its name, exit code 1 or 2; the same with exit code 0, e.g. a
part that a report leaves out; the numbers of the undamaged run. The others are `traceback` and `silent`."""
_VOLATILE = (
    "seconds",
    "tokens_per_second",
    "peak_memory_bytes",
    "versions",
    "git",
    "machine",
    "created",
    "sha256",
    "finished",
)


class Trial(NamedTuple):
    """A file (as a pattern of `FILES`), how it is damaged, and the command that runs then."""

    file: str
    damage: str
    command: str


@dataclass(kw_only=True)
class World:
    """Finished runs of each method, in a folder that is restored before each trial."""

    root: Path  # backbone, data, runs and cache; the runs have been given this path
    intact: Path  # copies of runs, cache and backbone
    numbers: dict[str, Any] = field(default_factory=dict)  # by command, without damage
    outcomes: dict[Trial, tuple[str, str]] = field(default_factory=dict)  # of finished trials: the fast test has a few

    def path(self, pattern: str) -> Path:
        """Return the file of a pattern."""
        return min(self.root.glob(pattern))

    def restore(self) -> None:
        """Undo everything that a trial changed."""
        for folder in ("runs", "cache", "backbone"):
            shutil.rmtree(self.root / folder, ignore_errors=True)
            shutil.copytree(self.intact / folder, self.root / folder)

    def arguments(self, command: str) -> list[str]:
        """Return the arguments of `imsm`."""
        run = str(self.path(RUN))
        return {
            "run": ["run", *word_overrides(self.root, "logger=none")],
            "evaluate": ["run", *word_overrides(self.root, "logger=none"), "mode=evaluate"],
            "report": ["report", run],
            "baselines": ["baselines", run, "--baselines", "logit_mix,query_router", "--values", "0.5"],
            "predictions": ["predictions", run, "--full", "--output", str(self.root / "predictions.csv")],
            "generate": ["generate", run, "after red comes", "--max-new-tokens", "3", "--device", "cpu"],
            "compare": ["compare", *word_overrides(self.root, "logger=none", method="original,peft,imsm")],
        }[command]

    def call(self, command: str) -> tuple[int, str, str, Any]:
        """Return exit code, output, errors and numbers of a command."""
        output, errors = io.StringIO(), io.StringIO()
        (self.root / "predictions.csv").unlink(missing_ok=True)
        with contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors):
            try:
                code = main(self.arguments(command))
            except SystemExit as error:
                code = int(error.code or 0)
            except BaseException:
                traceback.print_exc()
                code = 1
        numbers = self._numbers(command, output.getvalue()) if code == 0 else None
        return code, output.getvalue(), errors.getvalue(), numbers

    def _numbers(self, command: str, output: str) -> Any:
        """Return what a command is run for, without times."""
        run = self.path(RUN)
        if command == "predictions":
            return (self.root / "predictions.csv").read_text(encoding="utf-8")
        if command in ("run", "evaluate", "report"):
            tables = {path.name: path.read_text(encoding="utf-8") for path in sorted(run.glob("tables/*.csv"))}
            for name in ("cost.csv", "run.csv"):  # times and dates
                tables.pop(name, None)
            return [tables, _without_times(json.loads((run / "result.json").read_text(encoding="utf-8")))]
        return output


def _without_times(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_times(each) for key, each in value.items() if key not in _VOLATILE}
    return value


@contextlib.contextmanager
def build_world(root: Path) -> Iterator[World]:
    """Train and evaluate the runs; within the block, commands use only the world's folders."""
    world = World(root=root / "work", intact=root / "intact")
    world.root.mkdir(parents=True)
    write_word_files(world.root)
    environment = {"IMSM_RUNS": str(world.root / "runs"), "IMSM_CACHE": str(world.root / "cache")}
    with mock.patch.dict(os.environ, environment), _fast():
        for method in ("original", "peft", "imsm"):
            assert main(["run", *word_overrides(world.root, "logger=none", method=method)]) == 0
        assert world.call("baselines")[0] == 0
        for folder in ("runs", "cache", "backbone"):
            shutil.copytree(world.root / folder, world.intact / folder)
        for command in COMMANDS:
            world.restore()
            code, _, errors, world.numbers[command] = world.call(command)
            assert code == 0, errors
        yield world


@contextlib.contextmanager
def _fast() -> Iterator[None]:
    """Compose each command line once, draw no figures, and do not wait for the disk."""
    load, compositions = ConfigLoaderImpl.load_configuration, {}

    def composed(loader: Any, *arguments: Any, **keywords: Any) -> Any:
        key = repr((arguments, sorted(keywords.items())))
        if key not in compositions:
            compositions[key] = load(loader, *arguments, **keywords)
        return copy.deepcopy(compositions[key])

    threads, argv, path = torch.get_num_threads(), list(sys.argv), list(sys.path)
    torch.set_num_threads(1)
    with (
        mock.patch.object(ConfigLoaderImpl, "load_configuration", composed),
        no_figures(),
        mock.patch("os.fsync", lambda descriptor: None),
    ):
        yield
    torch.set_num_threads(threads)
    sys.argv, sys.path = argv, path


def run_trial(world: World, trial: Trial) -> tuple[str, str]:
    """Return the outcome of a trial, and the lines that were printed."""
    world.restore()
    path = world.path(trial.file)
    DAMAGES[trial.damage](path)
    damaged = _content(path)
    code, output, errors, numbers = world.call(trial.command)
    printed = "\n".join(line for line in (output + errors).splitlines() if path.name in line or "imsm: " in line)
    # the weights of a backbone are several files, so a message may name its folder
    name = "backbone" if trial.file.startswith("backbone/") else path.name
    outcome = _outcome(name, code, output + errors, same=numbers == world.numbers[trial.command])
    if outcome == "unaffected" and _content(path) != damaged:
        outcome = "repaired"
    return outcome, printed or errors


def _outcome(name: str, code: int, printed: str, *, same: bool) -> str:
    if "Traceback (most recent call last)" in printed:
        return "traceback"
    lines = printed.splitlines()
    errors = [line for line in lines if line.startswith("imsm: ")]
    if code != 0:
        return "clear error" if len(errors) == 1 and name in printed else "unclear error"
    if same:
        return "unaffected"
    # a run whose result is missing is listed with its command
    named = any(name in line or line.strip().startswith("missing: imsm run") for line in lines)
    return "named" if named else "silent"


def _content(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except OSError:
        return None


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """Finished runs, whose files are damaged and restored."""
    with build_world(tmp_path_factory.mktemp("world")) as built:
        yield built


@pytest.mark.parametrize(("number", "file"), [*enumerate(FILES)], ids=[*FILES])
def test_a_damaged_file_is_repaired_named_or_without_effect(world: World, number: int, file: str) -> None:
    commands = FILES[file]
    for k in range(3):
        damage, command = MAIN_DAMAGES[(number + 2 * k) % len(MAIN_DAMAGES)], commands[k % len(commands)]
        _check(world, _trials(file, damages=[damage], commands=[command]))


@pytest.mark.slow
@pytest.mark.parametrize("file", FILES)
def test_no_damage_of_a_file_ends_in_a_traceback_or_other_numbers(world: World, file: str) -> None:
    _check(world, _trials(file, damages=MAIN_DAMAGES, commands=FILES[file]))


@pytest.mark.parametrize(
    ("removed", "repaired"),
    [
        ("model", True),
        ("training.json", True),
        ("evaluation", True),
        ("result.json", True),
        ("model/adapter", False),
        ("model/gate.safetensors", False),
        ("input_hashes.json", False),
        ("identity.json", False),
    ],
)
def test_a_run_with_a_removed_part_is_completed_or_says_what_to_do(world: World, removed: str, repaired: bool) -> None:
    world.restore()
    run = world.path(RUN)
    path = run / removed
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    code, _, errors, numbers = world.call("run")
    if not repaired:
        (line,) = [line for line in errors.splitlines() if line.startswith("imsm: ")]
        assert code == 2 and any(part in line for part in (str(path), path.name))
        assert "run its command again" in line or "run_dir=" in line
        return
    assert (code, numbers) == (0, world.numbers["run"]), errors
    assert path.exists()
    if removed in ("model", "training.json"):
        assert f"{run / 'training.json'} is missing; training the model again" in errors


@pytest.mark.parametrize(
    "changed",
    [
        {"identity": [1]},
        {"identity": {"seed": 1}},
        {"config": {}},
        {"evaluation": {"tasks": {"jsonl": {"metrics": []}}}},
        {"trainable_parameters": []},
        {"method": None},
    ],
)
def test_an_odd_result_of_another_run_is_left_out_of_a_report(world: World, changed: dict[str, Any]) -> None:
    world.restore()
    path = world.path(f"{PEFT}/result.json")
    values = json.loads(path.read_text(encoding="utf-8"))
    del values["sha256"]
    write_hashed_json(path, values | changed)  # as another program would write it
    code, output, errors, _ = world.call("report")
    assert code == 0 and "Traceback" not in errors, errors
    assert str(path) in output.replace("\n", "")


def _trials(file: str, *, damages: Iterable[str], commands: Iterable[str]) -> list[Trial]:
    """Return the trials of a file; a run or baseline without a result does not exist, which is no damage."""
    optional = file.endswith("result.json") and not file.startswith((f"{RUN}/result", ORIGINAL))
    return [
        Trial(file, damage, command)
        for damage in damages
        for command in commands
        if not (optional and damage == "missing")
    ]


def _check(world: World, trials: list[Trial]) -> None:
    for trial in trials:
        if trial not in world.outcomes:
            world.outcomes[trial] = run_trial(world, trial)
    assert {trial: found for trial in trials if (found := world.outcomes[trial])[0] not in FINE} == {}


def _print_table(world: World, files: list[str], *, every: bool, show: bool) -> bool:
    """Run all trials of some files, print the counts, and return whether all outcomes are fine."""
    counts: dict[str, Counter[str]] = {}
    for file in files:
        damages, commands = (DAMAGES, COMMANDS) if every else (MAIN_DAMAGES, FILES[file])
        for trial in _trials(file, damages=damages, commands=commands):
            outcome, printed = run_trial(world, trial)
            counts.setdefault(trial.command, Counter())[outcome] += 1
            if (show and outcome != "unaffected") or outcome not in FINE:
                print(f"{' '.join(trial)}: {outcome}\n    {printed.strip()[-700:]}", flush=True)
    kinds = [
        *FINE,
        *sorted({kind for counter in counts.values() for kind in counter} - set(FINE) | {"traceback", "silent"}),
    ]
    print(f"| command | trials | {' | '.join(kinds)} |\n|{'---|' * (len(kinds) + 2)}")
    counts["total"] = sum(counts.values(), Counter())
    for command, counter in counts.items():
        print(f"| {command} | {counter.total()} | {' | '.join(str(counter[kind]) for kind in kinds)} |")
    return set(counts["total"]) <= set(FINE)


if __name__ == "__main__":
    words = [word for word in sys.argv[1:] if not word.startswith("--")]
    chosen = [file for file in FILES if not words or any(word in file for word in words)]
    with tempfile.TemporaryDirectory() as temporary, build_world(Path(temporary)) as finished:
        fine = _print_table(finished, chosen, every="--all" in sys.argv, show="--list" in sys.argv)
        sys.exit(int(not fine))
