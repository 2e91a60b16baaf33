"""Start-up: seconds until the help, a plan, the first training step."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

from scripts.bench.comparison import Comparison

ROUNDS = 3
LIMITS = {"--help": 1.0, "mode=plan backbone=llama3": 10.0, "the first training step": 15.0}
"""Seconds."""


def compare_startup() -> list[Comparison]:
    """Run each command in its own process; "theirs" is the limit."""
    measured = {
        "--help": lambda: _ended("--help"),
        "mode=plan backbone=llama3": lambda: _ended("mode=plan", "backbone=llama3"),
        "the first training step": _first_step,
    }
    return [
        Comparison(
            name=f"start-up, {name}: ours / the limit",
            ours=median(measured[name]() for _ in range(ROUNDS)),
            theirs=limit,
            unit="s",
            bar=1.0,
        )
        for name, limit in LIMITS.items()
    ]


def _ended(*arguments: str) -> float:
    started = time.monotonic()
    command = [sys.executable, "-m", "imsm.run", *arguments]
    subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=True)
    return time.monotonic() - started


def _first_step() -> float:
    """Return the seconds until the first training step is in the run's log."""
    with tempfile.TemporaryDirectory() as folder:
        runs = Path(folder) / "runs"
        environment = {**os.environ, "IMSM_RUNS": str(runs), "IMSM_CACHE": folder}
        started = time.monotonic()
        process = subprocess.Popen(
            [sys.executable, "-m", "imsm.run"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment
        )
        try:
            while not any(log.stat().st_size for log in runs.glob("*/log.jsonl")):
                if process.poll() is not None:
                    raise RuntimeError("python -m imsm.run ended before its first training step")
                time.sleep(0.02)
            return time.monotonic() - started
        finally:
            process.send_signal(signal.SIGINT)
            try:
                process.wait(timeout=60)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
