"""Stop a command by a signal at random times; each time it must end with one line and the signal's exit code.

    python -m scripts.stop_test --trials 60 --seed 0
    python -m scripts.stop_test --trials 20 --seed 0 -- -m sweep=local seed=0,1

A small run of the miniature is executed once without a signal. Each trial starts it in an empty folder and sends
SIGINT, SIGTERM or SIGHUP at a random time from 0.1 s on. The exit code of this script is 1 if a trial prints a
traceback, ends without its line, has another exit code, or leaves a process.
"""

from __future__ import annotations

import argparse
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from scripts.crash_test import MARK, processes_of

QUICK = (
    "data.max_train_examples=64", "trainer.num_epochs=1", "trainer.global_batch_size=16", "evaluation.limit=4",
    "evaluation.tasks=[target,webq]", "logger=none",
)  # fmt: skip
"""A run of some seconds."""
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_TIMEOUT = 120
_GRACE_SECONDS = 5


@dataclass(frozen=True, kw_only=True)
class Stop:
    """How a command ended after a signal.

    Attributes:
        number: The signal.
        delay: Seconds from the start of the process to the signal.
        code: Exit code; 0 if the command had finished before the signal took effect.
        output: Output of both streams.
        processes: Processes of the command that were left.
    """

    number: int
    delay: float
    code: int
    output: str
    processes: list[int]

    def errors(self) -> list[str]:
        """Return what is wrong with the end of the command."""
        found = []
        if "Traceback" in self.output or re.search(r"^Exception ignored|KeyboardInterrupt", self.output, re.M):
            found.append("traceback")
        if self.code not in (0, 128 + self.number):
            found.append(f"exit code {self.code}")
        name = signal.Signals(self.number).name
        if self.code and self.output.count(f"imsm: interrupted by {name}; ") != 1:
            found.append("not one line")
        if self.processes:
            found.append(f"processes left: {self.processes}")
        return found


def stop(command: list[str], runs: Path, *, delay: float, number: int, from_handlers: bool = False) -> Stop:
    """Start a command with ``runs`` as the runs root, and send it a signal after ``delay`` seconds.

    With ``from_handlers`` the delay begins when the process has installed its handlers, whatever the machine's load.
    """
    mark = f"{os.getpid()}-{time.monotonic_ns()}"
    environment = os.environ | {"IMSM_RUNS": str(runs), MARK: mark}
    with tempfile.TemporaryFile("w+") as output:
        # in its own session: a signal of this terminal must not reach it
        process = subprocess.Popen(
            command, stdout=output, stderr=output, env=environment, start_new_session=True, preexec_fn=_default_signals
        )
        while from_handlers and process.poll() is None and not _handles_signals(process.pid):
            time.sleep(0.001)
        time.sleep(delay)
        process.send_signal(number)
        code = process.wait(_TIMEOUT)
        deadline = time.monotonic() + _GRACE_SECONDS
        while (left := processes_of(mark)) and time.monotonic() < deadline:
            time.sleep(0.1)
        output.seek(0)
        return Stop(number=number, delay=delay, code=code, output=output.read(), processes=list(left))


def _handles_signals(pid: int) -> bool:
    """Return whether a process has a handler for SIGTERM."""
    try:
        (mask,) = re.findall(r"^SigCgt:\s*(\w+)", Path(f"/proc/{pid}/status").read_text(), re.M)
    except (OSError, ValueError):
        return False
    return bool(int(mask, 16) >> (signal.SIGTERM - 1) & 1)


def _default_signals() -> None:
    """Undo what a shell ignores in a background process."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_DFL)


def main() -> None:
    """Run the trials of the command line and exit."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--longest", type=float, help="seconds; default: measured, as long as the run takes")
    parser.add_argument("overrides", nargs="*", help="overrides of the run, after --")
    arguments = parser.parse_args()
    root = Path(tempfile.mkdtemp(prefix="imsm-stop-"))
    command = [sys.executable, "-m", "imsm.run", *QUICK, *arguments.overrides]
    seconds = arguments.longest
    if seconds is None:
        started = time.monotonic()
        subprocess.run(command, env=os.environ | {"IMSM_RUNS": str(root / "full")}, check=True, capture_output=True)
        seconds = time.monotonic() - started
        print(f"without a signal: {seconds:.1f} s", flush=True)
    rng = random.Random(arguments.seed)
    failed = 0
    for trial in range(1, arguments.trials + 1):
        number, delay = rng.choice(SIGNALS), rng.uniform(0.1, seconds)
        stopped = stop(command, root / str(trial), delay=delay, number=number)
        errors = stopped.errors()
        failed += bool(errors)
        last = (stopped.output.strip().splitlines() or [""])[-1]
        text = f"{trial:>3}  {signal.Signals(number).name:<7} at {delay:5.2f} s: exit code {stopped.code}"
        print(f"{text}, {'; '.join(errors) or 'ok'}: {stopped.output if errors else last}", flush=True)
        shutil.rmtree(root / str(trial), ignore_errors=True)
    shutil.rmtree(root)
    print(f"{arguments.trials - failed}/{arguments.trials} ended with one line and the signal's exit code")
    sys.exit(failed > 0)


if __name__ == "__main__":
    main()
