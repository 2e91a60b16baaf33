"""Kill a run at random points, give the same command again, and compare with one left alone.

    python -m scripts.crash_test --rounds 20 --seed 0
    python -m scripts.crash_test --rounds 20 --seed 0 --engine zero2 --processes 2

A small run of the miniature is carried out once without any interruption. Each round starts it in
an empty folder, sends `kill -9` to one of its processes at a random point of that time, looks that
no process of it is left over, gives the same command again, and compares: the weights bit for
bit, every line of the evaluation, every step of the log. Exit code 1 if anything differs.

Time is the seconds that the run's processes computed: whatever else the machine does, a run then
is as far as the one left alone was.
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
"""A run of about twenty seconds on two cores, half of them training, a checkpoint a second."""
MARK = "IMSM_KILLED_RUN"
"""An environment variable whose value tells a run's processes from all others."""
WORKER = "imsm.cli.worker"
"""What stands in the command line of a worker."""
_PATIENCE = 600
"""Seconds until a run counts as stuck, and is killed wherever it is."""


@dataclass(frozen=True, kw_only=True)
class Ended:
    """How one command ended."""

    code: int
    seconds: float
    computed: float
    told: str
    """What it said on both streams."""


@dataclass(frozen=True, kw_only=True)
class Kill:
    """One kill: after how many seconds, what the run was doing, and which process it hit."""

    seconds: float
    phase: str
    whom: str
    left_over: list[int]
    """Processes of the run that were there some seconds later; they were then killed too."""
    code: int


def main() -> None:
    """Run the command line and exit."""
    asked = _arguments()
    root = Path(tempfile.mkdtemp(prefix="imsm-kill-", dir=asked.folder))
    command = [sys.executable, "-m", "imsm.run", *SHORT, f"engine={asked.engine}"]
    if asked.engine != "single":
        command += [f"engine.nproc_per_node={asked.processes}", "engine.device=cpu"]
    command += asked.overrides
    print(" ".join(command[1:]))
    whole = carry_out(command, root / "whole")
    if whole.code != 0:
        sys.exit(f"the run ends with {whole.code} even if nothing kills it:\n{whole.told}")
    took = f"{whole.seconds:.1f} s, of computing {whole.computed:.1f} s"
    print(f"uninterrupted: {took}", flush=True)
    draw = random.Random(asked.seed)
    good = 0
    for number in range(1, asked.rounds + 1):
        folder = root / f"round-{number:02d}"
        target = asked.target if asked.target != "both" else ("worker", "launcher")[number % 2]
        killed = None
        while killed is None:  # a run may end sooner than its kill
            shutil.rmtree(folder, ignore_errors=True)
            after = draw.uniform(0, whole.computed)
            killed = kill_one(command, folder, after=after, target=target, grace=asked.grace)
        problems = _go_on(command, folder, root / "whole", killed)
        said = f"{number:>3}  killed {killed.whom} at {killed.seconds:5.1f} s, {killed.phase}"
        print(f"{said}: {'; '.join(problems) or 'bit-equal'}", flush=True)
        good += not problems
        if not problems:
            shutil.rmtree(folder)
    if good == asked.rounds:
        shutil.rmtree(root)
    else:
        print(f"what differs is kept in {root}")
    print(f"{good}/{asked.rounds} bit-equal")
    sys.exit(good < asked.rounds)


def carry_out(command: list[str], runs: Path) -> Ended:
    """Carry a command out, with its runs below ``runs``, and wait for its end."""
    mark, started, before = _new_mark(runs), time.monotonic(), _of_children()
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, env=_environment(runs, mark=mark))
        try:
            code = process.wait(_PATIENCE)
        except subprocess.TimeoutExpired:
            for pid in processes_of(mark):
                _kill(pid)
            code = process.wait()
        output.seek(0)
        return Ended(
            code=code, seconds=time.monotonic() - started, computed=_of_children() - before, told=output.read()
        )


def kill_one(command: list[str], runs: Path, *, after: float, target: str, grace: float) -> Kill | None:
    """Start a command and kill one of its processes ``after`` so many seconds.

    Args:
        command: what to start.
        runs: where its runs lie.
        after: seconds that its processes have computed.
        target: "worker" (a random one, if there is any yet) or "launcher", the command itself.
        grace: seconds in which all of its processes have to be gone.

    Returns:
        What was killed, or None if the command had ended before.
    """
    mark, patience = _new_mark(runs), time.monotonic() + _PATIENCE
    with (
        tempfile.TemporaryFile() as output,
        subprocess.Popen(command, stdout=output, stderr=output, env=_environment(runs, mark=mark)) as process,
    ):
        while (computed := computed_by(mark)) < after and time.monotonic() < patience:
            if process.poll() is not None:
                return None
            time.sleep(0.02)
        phase = phase_of(runs)
        workers = [pid for pid in processes_of(mark) if WORKER in _command_line(pid)]
        if target == "worker" and workers:
            index = int(after * 1e6) % len(workers)
            _kill(workers[index])
            whom = f"worker {index + 1} of {len(workers)}"
        else:
            process.kill()
            whom = "the launcher" if workers else "the process"
        gone = _within(grace, lambda: process.poll() is not None and not processes_of(mark))
        left_over = [] if gone else processes_of(mark)
        for pid in left_over:
            _kill(pid)
        return Kill(seconds=computed, phase=phase, whom=whom, left_over=left_over, code=process.wait(grace))


def processes_of(mark: str) -> list[int]:
    """The processes whose environment holds this mark, the oldest first."""
    wanted = f"{MARK}={mark}".encode()
    found = []
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        try:
            if wanted in (folder / "environ").read_bytes().split(b"\0"):
                found.append(int(folder.name))
        except OSError:  # it ended meanwhile, or is somebody else's
            continue
    return sorted(found)


def computed_by(mark: str) -> float:
    """Processor time, in seconds, of a run's processes and of those that they waited for."""
    ticks = 0
    for pid in processes_of(mark):
        with contextlib.suppress(OSError):
            stat = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            ticks += sum(map(int, stat[11:15]))
    return ticks / os.sysconf("SC_CLK_TCK")


def phase_of(runs: Path) -> str:
    """What the run below ``runs`` has come to, told from its files."""
    (run, *_) = [*runs.glob("*-imsm-*"), None]
    if run is None or not (run / "identity.json").is_file():
        return "starting"
    if (run / "result.json").is_file():
        return "reporting"
    if (run / "training.json").is_file():
        judged = len([*runs.glob("*/evaluation/*/predictions.jsonl")])
        return f"evaluation, {judged} tasks of both arms judged"
    if (run / "model").is_dir():
        return "writing the model"
    steps = _steps(run)
    return f"training, after step {steps[-1]}" if steps else "loading"


def differences(whole: Path, parts: Path) -> list[str]:
    """What of the runs below ``parts`` is not as below ``whole``; a line each."""
    problems = []
    names = {run.name for run in whole.iterdir()}
    if names != {run.name for run in parts.iterdir()}:
        problems.append(f"the runs are not {', '.join(sorted(names))}")
    kinds = ("model/**/*.safetensors", "evaluation/*/*.jsonl")
    for pattern in kinds:
        expected, found = _files(whole, pattern), _files(parts, pattern)
        problems += [
            f"{name} is not the same" for name in sorted(expected | found) if (expected.get(name) != found.get(name))
        ]
    for run in sorted(names):
        if _losses(whole / run) != _losses(parts / run):
            problems.append(f"{run}/log.jsonl: other steps or losses")
        if _scores(whole / run) != _scores(parts / run):
            problems.append(f"{run}/result.json: other scores")
        for file in (parts / run).glob("evaluation/*/*.jsonl"):
            ids = [json.loads(line)["id"] for line in file.open(encoding="utf-8") if line.strip()]
            if len(set(ids)) < len(ids):
                problems.append(f"{file}: an item twice")
    return problems


def _go_on(command: list[str], runs: Path, whole: Path, killed: Kill) -> list[str]:
    """Give the same command again; what is wrong before, with and after it."""
    problems = []
    if killed.left_over:
        problems.append(f"{len(killed.left_over)} processes were left over")
    if killed.whom.startswith("worker") and killed.code != 1:
        problems.append(f"the launcher ended with {killed.code} in place of 1")
    again = carry_out(command, runs)
    if again.code != 0:
        last = (again.told.strip().splitlines() or ["nothing was said"])[-1]
        return [*problems, f"the same command ended with {again.code} ({last})"]
    return problems + differences(whole, runs)


def _of_children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _new_mark(runs: Path) -> str:
    return f"{os.getpid()}-{runs.name}-{time.monotonic_ns()}"


def _environment(runs: Path, *, mark: str) -> dict[str, str]:
    """One thread: the order of a sum, and with it the last bits, must not depend on the load."""
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
    """The content of each run's files by their names below ``runs``."""
    files = (file for run in runs.iterdir() for file in run.glob(pattern))
    return {str(file.relative_to(runs)): file.read_bytes() for file in files}


def _log(run: Path) -> list[dict[str, Any]]:
    if not (run / "log.jsonl").is_file():
        return []
    lines = (run / "log.jsonl").read_text(encoding="utf-8").splitlines()
    found = []
    for line in lines:
        try:
            found.append(json.loads(line))
        except ValueError:
            found.append({"step": None, "damaged": line})
    return found


def _steps(run: Path) -> list[int]:
    return [record["step"] for record in _log(run) if record["step"] is not None]


def _losses(run: Path) -> list[tuple[int, float]]:
    """Every line of a training step, in the file's order; a damaged line is none of them."""
    log = _log(run)
    found = [(record["step"], record["loss"]) for record in log if record["step"] is not None]
    return found + [(-1, 0.0) for record in log if "damaged" in record]


def _scores(run: Path) -> dict[str, Any]:
    if not (run / "result.json").is_file():
        return {}
    tasks = json.loads((run / "result.json").read_text(encoding="utf-8"))["evaluation"]["tasks"]
    return {name: (entry["num_examples"], entry["metrics"]) for name, entry in tasks.items()}


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0, help="of the points of the kills")
    parser.add_argument("--engine", default="single", help="single, zero1, zero2, zero3")
    parser.add_argument("--processes", type=int, default=2, help="of a ZeRO engine")
    parser.add_argument("--target", choices=("worker", "launcher", "both"), default="both")
    parser.add_argument("--grace", type=float, default=20, help="seconds for all processes to end")
    parser.add_argument("--folder", type=Path, help="where the runs lie while they are compared")
    parser.add_argument("overrides", nargs="*", help="more of the run's key=value")
    return parser.parse_args()


if __name__ == "__main__":
    main()
