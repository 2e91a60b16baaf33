"""The command line of the GPU benchmark, `python -m scripts.bench --device cuda`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from scripts.bench.gpu.rows import ROWS
from scripts.bench.gpu.runner import Record, measure_rows
from scripts.bench.gpu.session import TINY_SHAPE, Session
from scripts.bench.report import write_page
from scripts.bench.result import print_table
from scripts.bench.workloads import Setup


def run(options: argparse.Namespace, setup: Setup, *, name: str, commit: str | None) -> Path:
    """Measure, write the file after each row, print the comparisons; return the file's path.

    Raises:
        ValueError: the file in ``options.output`` was measured with other settings or another commit.
    """
    if options.tiny:
        setup = Setup(**{**vars(setup), "shape": {**(setup.shape or {}), **TINY_SHAPE}})
    session = Session(setup, tiny=options.tiny, rounds=2 if options.tiny else 5)
    settings: dict[str, Any] = {
        "backbone": options.backbone or "llama3",
        "random_weights": True,
        "target_modules": " ".join(setup.target_modules),
        "dtype": setup.dtype,
        "rounds": session.rounds,
        "tiny": options.tiny,
    }
    path = options.output / f"{name}.json"
    record = Record(path, session=session, settings=settings, commit=commit)
    wanted = [row for row in ROWS if not options.only or row.name in options.only]
    missed = measure_rows(record, session, wanted, seconds=options.seconds)
    for each in missed:
        print(f"{each}: no time left; run the same command again")
    print_table(record.content)
    print(f"written: {path} and {write_page(path, record.content)}")
    return path
