"""A small mirror with MRPC."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from imsm.data.sources import DataSource

PAIRS = [{"sentence1": f"Boat {n} sank .", "sentence2": f"Boat {n} went down .", "label": n % 2} for n in range(30)]
CARD = """---
configs:
- config_name: mrpc
  data_files:
  - split: train
    path: mrpc/train*
  - split: test
    path: [mrpc/test.jsonl]
---
"""
GLUE = Path("nyu-mll") / "glue"


def write_lines(path: Path, rows: list[Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def write_mirror(folder: Path) -> Path:
    write_lines(folder / GLUE / "mrpc" / "train.jsonl", PAIRS)
    write_lines(folder / GLUE / "mrpc" / "test.jsonl", PAIRS[:4])
    (folder / GLUE / "README.md").write_text(CARD)
    return folder


def mirror_source(mirror: Path) -> DataSource:
    return DataSource(kind="mirror", path=str(mirror))
