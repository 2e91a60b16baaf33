"""Kill a run at random times, rerun the same command, and compare with an uninterrupted run.

    python -m scripts.crash_test --rounds 20 --seed 0
    python -m scripts.crash_test --rounds 20 --seed 0 --engine zero2 --processes 2

A small run of the miniature is executed once without interruption. Each round starts it in an empty
folder, sends SIGKILL to one of its processes at a random time, checks that none of its processes is
left, reruns the same command and compares: the weights bit for bit, the evaluation line by line, and
every step of the log. The exit code is 1 if anything differs.

Time is measured in CPU seconds of the run's processes, so that the load of the machine does not matter.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SHORT = ("data.max_train_examples=256", "trainer.num_epochs=2", "trainer.save_steps=5", "evaluation.limit=16")
"""A run of about 20 s on two cores, half of it training, with a checkpoint per second."""
MARK = "IMSM_KILLED_RUN"
"""Environment variable that identifies the processes of a run."""
WORKER = "imsm.cli.worker"
"""Part of a worker's command line."""
_TIMEOUT = 600
"""Seconds after which a run is killed."""


@dataclass(frozen=True, kw_only=True)
class CommandResult:
    """Exit code, wall and CPU seconds, and output (both streams) of a command."""

    code: int
    seconds: float
    cpu_seconds: float
    output: str


@dataclass(frozen=True, kw_only=True)
class Kill:
    """One kill.

    Attributes:
        cpu_seconds: CPU seconds of the run before the kill.
        phase: What the run was doing.
        target: The process that was killed.
        orphans: Processes that were left after the grace period; they were killed as well.
        code: Exit code of the command.
    """

    cpu_seconds: float
    phase: str
    target: str
    orphans: list[int]
    code: int


def main() -> None:
    """Run the rounds of the command line and exit."""
    arguments = _parse_arguments()
    if arguments.folder is not None:
        Path(arguments.folder).mkdir(parents=True, exist_ok=True)
    root = Path(tempfile.mkdtemp(prefix="imsm-kill-", dir=arguments.folder))
    given = {text.partition("=")[0] for text in arguments.overrides}
    short = [text for text in SHORT if text.partition("=")[0] not in given]
    command = [sys.executable, "-m", "imsm.run", *short, f"engine={arguments.engine}"]
    if arguments.engine != "single":
        command += [f"engine.nproc_per_node={arguments.processes}", "engine.device=cpu"]
    command += arguments.overrides
    print(" ".join(command[1:]))
    full = run_command(command, root / "full")
    if full.code != 0:
        sys.exit(f"the uninterrupted run ends with exit code {full.code}:\n{full.output}")
    print(f"uninterrupted: {full.seconds:.1f} s, {full.cpu_seconds:.1f} CPU seconds", flush=True)
    rng = random.Random(arguments.seed)
    num_equal = 0
    for number in range(1, arguments.rounds + 1):
        folder = root / f"round-{number:02d}"
        target = arguments.target if arguments.target != "both" else ("worker", "launcher")[number % 2]
        kill = None
        while kill is None:  # the run can end before it is killed
            shutil.rmtree(folder, ignore_errors=True)
            after = rng.uniform(0, full.cpu_seconds)
            kill = kill_one(command, folder, after=after, target=target, grace=arguments.grace)
        errors = _rerun(command, folder, root / "full", kill)
        text = f"{number:>3}  killed {kill.target} at {kill.cpu_seconds:5.1f} s, {kill.phase}"
        print(f"{text}: {'; '.join(errors) or 'bit-equal'}", flush=True)
        num_equal += not errors
        if not errors:
            shutil.rmtree(folder)
    if num_equal == arguments.rounds:
        shutil.rmtree(root)
    else:
        print(f"differing runs are kept in {root}")
    print(f"{num_equal}/{arguments.rounds} bit-equal")
    sys.exit(num_equal < arguments.rounds)


def run_command(command: list[str], runs: Path) -> CommandResult:
    """Run a command with ``runs`` as the runs root, and wait for its end."""
    mark, started, before = _new_mark(runs), time.monotonic(), _children_cpu_seconds()
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, env=_environment(runs, mark=mark))
        try:
            code = process.wait(_TIMEOUT)
        except subprocess.TimeoutExpired:
            for pid in processes_of(mark):
                _kill(pid)
            code = process.wait()
        output.seek(0)
        return CommandResult(
            code=code,
            seconds=time.monotonic() - started,
            cpu_seconds=_children_cpu_seconds() - before,
            output=output.read(),
        )


def kill_one(command: list[str], runs: Path, *, after: float, target: str, grace: float) -> Kill | None:
    """Start a command and kill one of its processes.

    Args:
        command: Command to start.
        runs: Runs root.
        after: CPU seconds of its processes at the kill.
        target: "worker" (a random one, if any has started) or "launcher", the command itself.
        grace: Seconds within which all of its processes must end.

    Returns:
        The kill, or None if the command ended before.
    """
    mark, deadline = _new_mark(runs), time.monotonic() + _TIMEOUT
    with (
        tempfile.TemporaryFile() as output,
        subprocess.Popen(command, stdout=output, stderr=output, env=_environment(runs, mark=mark)) as process,
    ):
        while (used := cpu_seconds_of(mark)) < after and time.monotonic() < deadline:
            if process.poll() is not None:
                return None
            time.sleep(0.02)
        phase = phase_of(runs)
        workers = [pid for pid in processes_of(mark) if WORKER in _command_line(pid)]
        if target == "worker" and workers:
            index = int(after * 1e6) % len(workers)
            _kill(workers[index])
            killed = f"worker {index + 1} of {len(workers)}"
        else:
            process.kill()
            killed = "the launcher" if workers else "the process"
        all_ended = _within(grace, lambda: process.poll() is not None and not processes_of(mark))
        orphans = [] if all_ended else processes_of(mark)
        for pid in orphans:
            _kill(pid)
        return Kill(cpu_seconds=used, phase=phase, target=killed, orphans=orphans, code=process.wait(grace))


def processes_of(mark: str) -> list[int]:
    """Return the ids of the processes whose environment has this mark, in ascending order."""
    wanted = f"{MARK}={mark}".encode()
    found = []
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        try:
            if wanted in (folder / "environ").read_bytes().split(b"\0"):
                found.append(int(folder.name))
        except OSError:  # it has ended, or belongs to another user
            continue
    return sorted(found)


def cpu_seconds_of(mark: str) -> float:
    """Return the CPU seconds of a run's processes and of their waited-for children."""
    ticks = 0
    for pid in processes_of(mark):
        with contextlib.suppress(OSError):
            stat = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            ticks += sum(map(int, stat[11:15]))
    return ticks / os.sysconf("SC_CLK_TCK")


def phase_of(runs: Path) -> str:
    """Return what the run below ``runs`` is doing, according to its files."""
    (run, *_) = [*runs.glob("*-imsm-*"), None]
    if run is None or not (run / "identity.json").is_file():
        return "starting"
    if (run / "result.json").is_file():
        return "reporting"
    if (run / "training.json").is_file():
        evaluated = len([*runs.glob("*/evaluation/*/predictions.jsonl")])
        return f"evaluation, {evaluated} tasks of both runs finished"
    if (run / "model").is_dir():
        return "writing the model"
    steps = _steps(run)
    return f"training, after step {steps[-1]}" if steps else "loading"


def differences(expected: Path, found: Path) -> list[str]:
    """Return a line for each difference between the runs below two folders."""
    lines = []
    names = {run.name for run in expected.iterdir()}
    if names != {run.name for run in found.iterdir()}:
        lines.append(f"the runs are not {', '.join(sorted(names))}")
    for pattern in ("model/**/*.safetensors", "evaluation/*/*.jsonl"):
        contents, others = _files(expected, pattern), _files(found, pattern)
        lines += [f"{name} differs" for name in sorted(contents | others) if contents.get(name) != others.get(name)]
    for run in sorted(names):
        if _losses(expected / run) != _losses(found / run):
            lines.append(f"{run}/log.jsonl: other steps or losses")
        if _scores(expected / run) != _scores(found / run):
            lines.append(f"{run}/result.json: other scores")
        for file in (found / run).glob("evaluation/*/*.jsonl"):
            ids = [json.loads(line)["id"] for line in file.open(encoding="utf-8") if line.strip()]
            if len(set(ids)) < len(ids):
                lines.append(f"{file}: duplicate predictions")
    return lines


def _rerun(command: list[str], runs: Path, full: Path, kill: Kill) -> list[str]:
    """Rerun the command; return the errors of the kill, of the rerun and of its results."""
    errors = []
    if kill.orphans:
        errors.append(f"{len(kill.orphans)} processes were left")
    if kill.target.startswith("worker") and kill.code != 1:
        errors.append(f"the launcher ended with exit code {kill.code} instead of 1")
    rerun = run_command(command, runs)
    if rerun.code != 0:
        last = (rerun.output.strip().splitlines() or ["no output"])[-1]
        return [*errors, f"the rerun ended with exit code {rerun.code} ({last})"]
    return errors + differences(full, runs)


def _children_cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _new_mark(runs: Path) -> str:
    return f"{os.getpid()}-{runs.name}-{time.monotonic_ns()}"


def _environment(runs: Path, *, mark: str) -> dict[str, str]:
    # one thread, so that the order of sums, and thereby the last bits, do not depend on the load
    return {**os.environ, "IMSM_RUNS": str(runs), "OMP_NUM_THREADS": "1", MARK: mark}


def _command_line(pid: int) -> list[str]:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return []


def _kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def _within(seconds: float, condition: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True


def _files(runs: Path, pattern: str) -> dict[str, bytes]:
    """Return the content of the runs' files by relative path."""
    files = (file for run in runs.iterdir() for file in run.glob(pattern))
    return {str(file.relative_to(runs)): file.read_bytes() for file in files}


def _log(run: Path) -> list[dict[str, Any]]:
    if not (run / "log.jsonl").is_file():
        return []
    records = []
    for line in (run / "log.jsonl").read_text(encoding="utf-8").splitlines():
        try:
            records.append(json.loads(line))
        except ValueError:
            records.append({"step": None, "damaged": line})
    return records


def _steps(run: Path) -> list[int]:
    return [record["step"] for record in _log(run) if record["step"] is not None]


def _losses(run: Path) -> list[tuple[int, float]]:
    """Return (step, loss) of every line in file order, and (-1, 0) per damaged line."""
    log = _log(run)
    losses = [(record["step"], record["loss"]) for record in log if record["step"] is not None]
    return losses + [(-1, 0.0) for record in log if "damaged" in record]


def _scores(run: Path) -> dict[str, Any]:
    if not (run / "result.json").is_file():
        return {}
    tasks = json.loads((run / "result.json").read_text(encoding="utf-8"))["evaluation"]["tasks"]
    return {name: (entry["num_examples"], entry["metrics"]) for name, entry in tasks.items()}


def _parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0, help="seed of the kill times")
    parser.add_argument("--engine", default="single", help="single, zero1, zero2, zero3")
    parser.add_argument("--processes", type=int, default=2, help="processes of a ZeRO engine")
    parser.add_argument("--target", choices=("worker", "launcher", "both"), default="both")
    parser.add_argument("--grace", type=float, default=20, help="seconds for all processes to end")
    parser.add_argument("--folder", type=Path, help="folder for the compared runs")
    parser.add_argument("overrides", nargs="*", help="further key=value overrides of the run")
    return parser.parse_args()


if __name__ == "__main__":
    main()
