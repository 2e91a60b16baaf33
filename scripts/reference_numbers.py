"""Record what the miniature gives, and compare it with an earlier record.

    python -m scripts.reference_numbers record FILE.json.gz
    python -m scripts.reference_numbers compare FILE.json.gz OTHER.json.gz

A record holds the loss of every training step, every response, log-likelihood and score of the
original, PEFT and IMSM on the miniature, and the 27 trainable-parameter counts of the paper's
tables 1 and 6. `compare` prints each difference and exits with 1 if there is one. Two records are
equal only on the same kind of machine: one thread is used, but the order of a sum still depends on
the processor.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

COMMAND = "imsm.run"
LEARNING_RATE = "trainer.learning_rate=1e-2"
"""The miniature's rate when the first record was made."""
PREDICTIONS = "predictions.jsonl"
METHODS = ("original", "peft", "imsm")
COUNTS = [
    *(
        f"backbone={backbone} peft={peft} method={method} gate.rank=8"
        for backbone in ("chatglm3", "qwen1_5", "llama3")
        for peft in ("lora", "ia3", "adalora")
        for method in ("peft", "imsm")
    ),
    *(
        f"backbone=llama3 peft={peft} method=imsm gate.rank={rank}"
        for peft in ("lora", "ia3", "adalora")
        for rank in (4, 8, 16)
    ),
]


def main() -> None:
    """Run the command line and exit."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    recording = commands.add_parser("record")
    recording.add_argument("file", type=Path)
    comparing = commands.add_parser("compare")
    comparing.add_argument("files", type=Path, nargs=2)
    arguments = parser.parse_args()
    if arguments.command == "record":
        text = json.dumps(record(), ensure_ascii=False, indent=0)
        arguments.file.write_bytes(gzip.compress(text.encode(), mtime=0))
        return
    first, second = (json.loads(gzip.decompress(file.read_bytes())) for file in arguments.files)
    found = list(differences(first, second))
    print("\n".join(found[:50]))
    leaves = sum(1 for _ in values_of(first))
    print(f"{leaves} values compared, {len(found)} differ")
    sys.exit(bool(found))


def record() -> dict[str, Any]:
    """Run the miniature's three methods and the 27 plans in an empty folder."""
    with tempfile.TemporaryDirectory(prefix="imsm-reference-") as folder:
        environment = {
            **os.environ,
            "IMSM_RUNS": f"{folder}/runs",
            "IMSM_CACHE": f"{folder}/cache",
            "OMP_NUM_THREADS": "1",
        }
        command = [sys.executable, "-m", COMMAND, "-m", f"method={','.join(METHODS)}", LEARNING_RATE]
        subprocess.run(command, env=environment, check=True)
        runs = {read["method"]: read for read in map(_run, Path(folder, "runs").glob("*/result.json"))}
        return {"runs": runs, "parameters": {cell: _count(cell, environment) for cell in COUNTS}}


def _run(result_file: Path) -> dict[str, Any]:
    """Losses, predictions and scores of one run."""
    result = json.loads(result_file.read_text(encoding="utf-8"))
    log = result_file.parent / "log.jsonl"
    lines = [json.loads(line) for line in log.read_text().splitlines()] if log.is_file() else []
    tasks = {}
    for name, task in result["evaluation"]["tasks"].items():
        (folder,) = result_file.parent.glob(f"evaluation/{name}-*")
        rows = [json.loads(line) for line in (folder / PREDICTIONS).read_text().splitlines()]
        tasks[name] = {
            "metrics": {_plain(metric): value for metric, value in _metrics(task).items()},
            "items": {
                row["id"]: {
                    "response": row["response"],
                    "gold_loglik": row["reference_loglik"],
                    "gate_mean": row["gate_mean"],
                    "scores": {_plain(metric): score for metric, score in row["scores"].items()},
                }
                for row in rows
            },
        }
    return {
        "method": result["method"],
        "trainable_parameters": result["trainable_parameters"],
        "losses": [line["loss"] for line in lines if "loss" in line],
        "tasks": tasks,
    }


def _metrics(task: dict[str, Any]) -> dict[str, Any]:
    return dict(values_of(task["metrics"]))


def _plain(metric: str) -> str:
    """A metric's name as version 0.1 and later versions share it."""
    return metric.replace("released", "paper_code").replace("clean", "strict")


def _count(cell: str, environment: dict[str, str]) -> list[int]:
    """Trainable parameters of one cell: adapter, gate."""
    command = [sys.executable, "-m", COMMAND, *cell.split(), "mode=plan"]
    done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    found = re.search(r"trainable parameters: [\d,]+ \(adapter ([\d,]+)(?:, gate ([\d,]+))?\)", done.stdout)
    if found is None:
        raise SystemExit(f"{cell}: the plan prints no parameter count")
    return [int((text or "0").replace(",", "")) for text in found.groups()]


def values_of(record: Any, key: str = "") -> Any:
    """Every leaf of nested mappings and lists with its dotted key."""
    if isinstance(record, dict | list):
        pairs = record.items() if isinstance(record, dict) else enumerate(record)
        for name, value in pairs:
            yield from values_of(value, f"{key}.{name}" if key else str(name))
        return
    yield key, record


def differences(first: Any, second: Any) -> Any:
    """A line for each leaf that differs."""
    here, there = dict(values_of(first)), dict(values_of(second))
    for key in sorted(here.keys() | there.keys()):
        one, other = here.get(key, "missing"), there.get(key, "missing")
        if one != other:
            yield f"{key}: {one!r}, {other!r}"


if __name__ == "__main__":
    main()
