"""Measure large inputs: a response cache and local data with a million rows.

    python -m scripts.bench.large_inputs [--rows N]     # some minutes and 2 GB in the temporary folder

Writes `benchmarks/results/large_inputs.json`. Each row is measured in a new process: seconds of the clock and of
the processor (a busy machine has more of the former), and peak memory above that of the imports.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import random
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

from imsm.data.sources import DataSource, load_examples
from imsm.data.task import Task
from imsm.evaluation.eval_set import hash_examples
from imsm.evaluation.response_cache import ResponseCache
from imsm.pipeline.plan.data import counted_lengths
from imsm.utils.options import load_option
from scripts.bench.result import ROOT, _processor, commit

RESULT = ROOT / "benchmarks" / "results" / "large_inputs.json"
BATCH, LOOKED_UP, USED = 1000, 200, 64
LIMITS = {
    "cache: look up 200 rows": (0.1, 100),
    "data: 64 training examples": (10, 300),
    "data: 64 test examples": (10, 300),
    "plan: 64 training examples": (10, 300),
}
"""Most seconds and MB."""
Work = Callable[[Path, int], dict[str, Any] | None]


def key_of(number: int) -> str:
    """Return a key as long as a hash, in random order."""
    return f"{random.Random(number).getrandbits(256):064x}"


def row_of(number: int) -> dict[str, Any]:
    """Return a row of about 350 bytes of JSON."""
    text = f"{number} " + "the answer is a few words " * 9
    return {
        "text": text, "tokens": 60, "ended": True, "gate_mean": 0.41234, "gate_per_token": None,
        "token_texts": None, "seconds": 0.0123,
    }  # fmt: skip


def cache_of(folder: Path) -> ResponseCache:
    """Return the measured cache."""
    return ResponseCache(folder / "response_cache", fingerprint="0" * 16)


def append_all(folder: Path, rows: int) -> dict[str, Any]:
    """Append the rows in batches; the time per batch is the last tenth's."""
    cache, seconds = cache_of(folder), []
    for start in range(0, rows, BATCH):
        batch = {key_of(number): row_of(number) for number in range(start, min(start + BATCH, rows))}
        started = time.perf_counter()
        cache.append(batch)
        seconds.append(time.perf_counter() - started)
    size = round(cache.path.stat().st_size / 1e6)
    return {"seconds_per_1000_rows": round(median(seconds[-max(1, len(seconds) // 10) :]), 4), "file_mb": size}


def look_up(folder: Path, rows: int) -> dict[str, Any]:
    """Read rows that are cached, and as many that are not."""
    keys = [key_of(number) for number in random.Random(0).sample(range(rows), LOOKED_UP)]
    started = time.perf_counter()
    found = cache_of(folder).get(keys)
    seconds = time.perf_counter() - started
    assert len(found) == LOOKED_UP, len(found)
    return {"seconds": round(seconds, 4)}


def salvage(folder: Path, rows: int) -> dict[str, Any]:
    """Flip a bit in each of a thousand places, then read and repair."""
    cache, generator = cache_of(folder), random.Random(0)
    size = cache.path.stat().st_size
    with cache.path.open("r+b") as stream:
        for _ in range(1000):
            position = generator.randrange(3 * 4096, size)
            stream.seek(position)
            (byte,) = stream.read(1)
            stream.seek(position)
            stream.write(bytes([byte ^ 1 << generator.randrange(8)]))
    started = time.perf_counter()
    # every hundredth row, so that damage is found
    found = cache.get([key_of(number) for number in range(0, rows, 100)])
    assert all(row["text"].startswith(tuple("0123456789")) for row in found.values())
    return {"seconds": round(time.perf_counter() - started, 2)}


def write_data(folder: Path, rows: int) -> None:
    """Write training and test files of rows with a prompt of 60 words."""
    for role in ("train", "test"):
        with (folder / f"{role}.jsonl").open("w", encoding="utf-8") as stream:
            for number in range(rows):
                prompt = f"Question {number} ({role}): " + "which river runs through the town " * 9 + "\nAnswer:"
                stream.write(json.dumps({"prompt": prompt, "completion": f" river {number}", "id": number}) + "\n")


def load(folder: Path, role: Any) -> None:
    """Load and hash the used examples."""
    examples = load_examples(_task(), role, source=_source(folder), prompt_style="paper", limit=USED)
    hash_examples(examples)
    assert len(examples) == USED


def load_train(folder: Path, rows: int) -> None:
    """Load the used training examples."""
    load(folder, "train")


def load_test(folder: Path, rows: int) -> None:
    """Load the used test examples."""
    load(folder, "test")


def plan_all(folder: Path, rows: int) -> None:
    """Count the training examples and estimate their lengths."""
    found = counted_lengths(_task(), "train", source=_source(folder), prompts="paper", tokenizer=_tokenizer())
    assert found is not None and found.examples == rows


def plan_used(folder: Path, rows: int) -> None:
    """Count and measure the used training examples."""
    options: dict[str, Any] = {"source": _source(folder), "prompts": "paper", "tokenizer": _tokenizer()}
    assert counted_lengths(_task(), "train", **options, limit=USED) is not None


WORK: dict[str, Work] = {
    "cache: append all rows": append_all,
    "cache: look up 200 rows": look_up,
    "cache: repair after 1000 flipped bits": salvage,
    "data: 64 training examples": load_train,
    "data: 64 test examples": load_test,
    "plan: 64 training examples": plan_used,
    "plan: all training examples": plan_all,
}


def measured(name: str, folder: Path, rows: int) -> dict[str, Any]:
    """Run one piece of work; return its seconds and MB, or those that it reports."""
    base, started, cpu = _peak(), time.perf_counter(), time.process_time()
    found = WORK[name](folder, rows) or {}
    seconds, cpu = time.perf_counter() - started, time.process_time() - cpu
    record = {"name": name, "seconds": round(seconds, 2), "cpu_seconds": round(cpu, 2), "mb": round(_peak() - base)}
    record |= found
    if name in LIMITS:
        most_seconds, most_mb = LIMITS[name]
        record["limit"] = {"seconds": most_seconds, "mb": most_mb}
        record["met"] = record["seconds"] <= most_seconds and record["mb"] <= most_mb
    return record


def main() -> None:
    """Measure everything and write the result."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--rows", type=int, default=10**6)
    parser.add_argument("--output", type=Path, default=RESULT)
    arguments = parser.parse_args()
    with TemporaryDirectory() as folder:
        write_data(Path(folder), arguments.rows)
        records = []
        for name in WORK:
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                records.append(pool.apply(measured, (name, Path(folder), arguments.rows)))
            print(records[-1], flush=True)
    device = f"{_processor()}, {multiprocessing.cpu_count()} threads"
    record = {"rows": arguments.rows, "device": device, "commit": commit(), "measurements": records}
    arguments.output.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    sys.exit(0 if all(each.get("met", True) for each in records) else 1)


def _task() -> Task:
    return Task(**load_option("data", "jsonl"))


def _source(folder: Path) -> DataSource:
    return DataSource(kind="local", path=str(folder))


def _tokenizer() -> Path:
    return ROOT / "imsm" / "models" / "backbones" / "miniature" / "model" / "tokenizer.json"


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    main()
