"""Measure `imsm serve`: many clients at once against one at a time, in one run.

    python -m scripts.bench.serving RUN [--requests 200] [--clients 32]

Prompts of the run's own tests go to the streams in turn. Every answer must equal that of the same request alone.
Writes `benchmarks/results/serving.json`.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import quantiles
from typing import Any

import openai

from imsm.cli.common import find_run
from imsm.evaluation.predictions import read_predictions
from imsm.evaluation.result import read_result
from scripts.bench.result import ROOT, _processor, commit

RESULT = ROOT / "benchmarks" / "results" / "serving.json"
MAX_TOKENS = 48
Answer = tuple[str, int, float]
"""Text, tokens and seconds of a request."""


def prompts_of(run: Path, count: int) -> list[str]:
    """Return prompts of all tests of a run, in turn."""
    tasks = read_result(run)["evaluation"]["tasks"]
    columns = [
        read_predictions(run, task=task, test_set=entry["test_set"], sha256=entry["predictions_sha256"])["prompt"]
        for task, entry in tasks.items()
    ]
    return [str(columns[n % len(columns)].iloc[n // len(columns)]) for n in range(count)]


def start(run: Path) -> tuple[subprocess.Popen[str], str]:
    """Start the server in its own process; return it and its address."""
    command = [sys.executable, "-m", "imsm", "serve", str(run), "--port", "0", "--max-queue", "512"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    for line in server.stdout:
        if found := re.search(r"API (\S+);", line):
            return server, found.group(1)
    raise SystemExit("the server did not start")


def measure(ask: Callable[[int], Answer], indices: Sequence[int], clients: int) -> tuple[list[Answer], dict[str, Any]]:
    """Return the answers, and latency in seconds and tokens per second."""
    started = time.perf_counter()
    with ThreadPoolExecutor(clients) as pool:
        answers = list(pool.map(ask, indices))
    seconds = time.perf_counter() - started
    cuts = quantiles([answer[2] for answer in answers], n=100)
    tokens = sum(answer[1] for answer in answers)
    values = {"p50": cuts[49], "p99": cuts[98], "tokens_per_second": tokens / seconds, "seconds": seconds}
    return answers, {"clients": clients, "requests": len(indices), "tokens": tokens, **values}


def main() -> None:
    """Measure, print and write the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run")
    parser.add_argument("--requests", type=int, default=200)
    parser.add_argument("--clients", type=int, default=32)
    options = parser.parse_args()
    run = find_run(options.run)
    prompts = prompts_of(run, options.requests)
    server, address = start(run)
    client = openai.OpenAI(base_url=address, api_key="none", max_retries=0, timeout=600)
    models = [model.id for model in client.models.list()]

    def ask(index: int) -> Answer:
        started = time.perf_counter()
        model = models[index % len(models)]
        response = client.completions.create(model=model, prompt=prompts[index], max_tokens=MAX_TOKENS, temperature=0)
        assert response.usage is not None
        return response.choices[0].text, response.usage.completion_tokens, time.perf_counter() - started

    try:
        for index in range(len(models)):
            ask(index)
        everything = range(len(prompts))
        alone, one = measure(ask, everything, 1)
        together, many = measure(ask, everything, options.clients)
    finally:
        server.send_signal(signal.SIGKILL)
        server.wait()
    differing = [index for index in everything if alone[index][0] != together[index][0]]
    result = {
        "run": run.name, "commit": commit(), "processor": _processor(), "threads": os.environ.get("OMP_NUM_THREADS"),
        "load": os.getloadavg()[0], "models": [model.rpartition(":")[2] for model in models],
        "one_at_a_time": one, "together": many, "differing_answers": len(differing),
    }  # fmt: skip
    RESULT.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))
    if differing:
        raise SystemExit(f"{len(differing)} answers differ, the first: {prompts[differing[0]]!r}")


if __name__ == "__main__":
    main()
