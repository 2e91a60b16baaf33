"""Writes the twins in the hub's layout: README.md with `configs:`, JSON lines per split."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from scripts.miniature.datasets import cola, gsm8k, mrpc, multirc, ropes
from scripts.miniature.datasets import open_questions as questions
from scripts.miniature.datasets.sampling import Row
from scripts.miniature.world import World

Splits = dict[str, list[Row]]

_TWINS: dict[str, tuple[dict[str, str], tuple[Callable[[World, int], Splits], ...]]] = {
    # hub id: ({folder of the files: configuration's name}, makers of its files)
    "nyu-mll/glue": ({"cola": "cola", "mrpc": "mrpc"}, (cola.splits, mrpc.splits)),
    "openai/gsm8k": ({"main": "main"}, (gsm8k.splits,)),
    "allenai/ropes": ({"plain_text": "plain_text"}, (ropes.splits,)),
    "stanfordnlp/web_questions": ({"data": "default"}, (questions.web_splits,)),
    "aps/super_glue": ({"multirc": "multirc"}, (multirc.splits,)),
    "KelvinJiang/freebase_qa": ({"default": "default"}, (questions.freebase_splits,)),
}


def write_mirror(folder: Path, world: World, *, seed: int) -> None:
    """Write the seven twins below `folder`; the same world and seed give the same bytes."""
    for hub_id, (configs, makers) in _TWINS.items():
        files: Splits = {}
        for make in makers:
            files.update(make(world, seed))
        root = folder / hub_id
        root.mkdir(parents=True, exist_ok=True)
        (root / "README.md").write_text(_card(configs, sorted(files)), encoding="utf-8", newline="\n")
        for path, rows in files.items():
            target = root / f"{path}-00000-of-00001.jsonl"
            target.parent.mkdir(parents=True, exist_ok=True)
            text = "".join(json.dumps(row) + "\n" for row in rows)
            target.write_text(text, encoding="utf-8", newline="\n")


def _card(configs: dict[str, str], files: list[str]) -> str:
    """The dataset card: which files make which split of which configuration."""
    lines = ["---", "configs:"]
    for place, config in configs.items():
        lines += [f"- config_name: {config}", "  data_files:"]
        for file in files:
            start, split = file.split("/")
            if start == place:
                lines += [f"  - split: {split}", f"    path: {file}-*"]
    lines += ["---", "Invented data: this dataset's miniature twin, about a world that does not exist."]
    return "\n".join(lines) + "\n"
