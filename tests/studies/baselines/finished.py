"""Finished runs on a tiny backbone: a target of one's own, and a test of the miniature's.

The answer to a word is the word after it. What the other test asks the backbone never learned, but
it answers something.
"""

from __future__ import annotations

import json
from pathlib import Path

from imsm.data.sources import DataSource, load_examples
from imsm.pipeline.run import run_experiment
from tests.helpers.config import config
from tests.helpers.tiny_backbone import save_backbone

WORDS = ["red", "green", "blue", "black", "white", "brown", "pink", "grey", "gold", "lime"]
FORGETTING = "webq"
ITEMS = 8


def make(root: Path) -> Path:
    """A backbone and data under ``root``."""
    data = root / "data"
    data.mkdir()
    pairs = list(zip(WORDS, WORDS[1:] + WORDS[:1], strict=True))
    rows = [{"input": f"after {one} comes", "output": f" {other}"} for one, other in pairs]
    for name in ("train", "test"):
        (data / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = config(f"data={FORGETTING}").data
    miniature = DataSource(kind="miniature")
    asked = load_examples(task, "test", source=miniature, prompts="paper", limit=ITEMS)
    texts = [row["input"] + row["output"] for row in rows]
    texts += [f"{example.prompt} {example.golds[0]}" for example in asked]
    save_backbone(root / "backbone", texts=texts)
    return root


def choices(made: Path, *more: str, method: str = "peft") -> list[str]:
    """Overrides of a run."""
    return [
        "backbone=llama3",
        f"backbone.name_or_path={made / 'backbone'}",
        "backbone.dtype=float32",
        "data=jsonl",
        f"data.local_dir={made / 'data'}",
        "backbone.default_data_source=miniature",
        "data.metric=contain",
        "data.max_new_tokens=4",
        f"evaluation.tasks=[target,{FORGETTING}]",
        f"evaluation.limit={ITEMS}",
        "evaluation.batch_size=4",
        "trainer.num_epochs=30",
        "trainer.learning_rate=0.01",
        "trainer.global_batch_size=4",
        f"method={method}",
        *more,
    ]


def finished(made: Path, root: Path, *more: str, method: str = "peft") -> Path:
    """Carry a run out; returns its folder."""
    before = set(root.glob("*"))
    run_experiment(config(*choices(made, *more, method=method)), runs_root=root)
    (folder,) = (f for f in set(root.glob("*")) - before if f"-{method}-" in f.name)
    return folder
