"""Write the synthetic datasets in the layout of the Hub: README.md with `configs:`, JSON lines per split."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from scripts.miniature.datasets import cola, gsm8k, mrpc, multirc, ropes
from scripts.miniature.datasets import open_questions as questions
from scripts.miniature.datasets.sampling import Row
from scripts.miniature.world import SyntheticWorld

Splits = dict[str, list[Row]]

_DATASETS: dict[str, tuple[dict[str, str], tuple[Callable[[SyntheticWorld, int], Splits], ...]]] = {
    # Hub id: ({folder of the files: configuration name}, functions that return its splits)
    "nyu-mll/glue": ({"cola": "cola", "mrpc": "mrpc"}, (cola.splits, mrpc.splits)),
    "openai/gsm8k": ({"main": "main"}, (gsm8k.splits,)),
    "allenai/ropes": ({"plain_text": "plain_text"}, (ropes.splits,)),
    "stanfordnlp/web_questions": ({"data": "default"}, (questions.web_splits,)),
    "aps/super_glue": ({"multirc": "multirc"}, (multirc.splits,)),
    "KelvinJiang/freebase_qa": ({"default": "default"}, (questions.freebase_splits,)),
}


def write_datasets(folder: Path, world: SyntheticWorld, *, seed: int) -> None:
    """Write the seven datasets to ``folder``, reproducibly byte for byte."""
    for hub_id, (configs, functions) in _DATASETS.items():
        files: Splits = {}
        for splits in functions:
            files.update(splits(world, seed))
        root = folder / hub_id
        root.mkdir(parents=True, exist_ok=True)
        (root / "README.md").write_text(_card(configs, sorted(files)), encoding="utf-8", newline="\n")
        for path, rows in files.items():
            target = root / f"{path}-00000-of-00001.jsonl"
            target.parent.mkdir(parents=True, exist_ok=True)
            text = "".join(json.dumps(row) + "\n" for row in rows)
            target.write_text(text, encoding="utf-8", newline="\n")


def _card(configs: dict[str, str], files: list[str]) -> str:
    """Return the dataset card, which assigns files to splits and configurations."""
    lines = ["---", "configs:"]
    for subfolder, config in configs.items():
        lines += [f"- config_name: {config}", "  data_files:"]
        for file in files:
            parent, split = file.split("/")
            if parent == subfolder:
                lines += [f"  - split: {split}", f"    path: {file}-*"]
    lines += ["---", "Invented data: this dataset's miniature twin, about a world that does not exist."]
    return "\n".join(lines) + "\n"
