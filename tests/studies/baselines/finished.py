"""Finished runs on a tiny backbone: a custom target, and a forgetting test of the miniature.

The answer to a word is the next word. The backbone has not learned the forgetting test.
"""

from __future__ import annotations

import json
from pathlib import Path

import pandas
from pandas.testing import assert_frame_equal

from imsm.data.sources import DataSource, load_examples
from imsm.evaluation.predictions import read_predictions
from imsm.evaluation.result import read_result
from imsm.pipeline.run import run_experiment
from tests.helpers.config import config
from tests.helpers.tiny_backbone import save_backbone

WORDS = ["red", "green", "blue", "black", "white", "brown", "pink", "grey", "gold", "lime"]
FORGETTING = "webq"
ITEMS = 8


def write_files(root: Path) -> Path:
    """Write a backbone and data to ``root`` and return it."""
    data = root / "data"
    data.mkdir()
    pairs = list(zip(WORDS, WORDS[1:] + WORDS[:1], strict=True))
    rows = [{"input": f"after {word} comes", "output": f" {successor}"} for word, successor in pairs]
    for name in ("train", "test"):
        (data / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = config(f"data={FORGETTING}").data
    miniature = DataSource(kind="miniature")
    examples = load_examples(task, "test", source=miniature, prompt_style="paper", limit=ITEMS)
    texts = [row["input"] + row["output"] for row in rows]
    texts += [f"{example.prompt} {example.golds[0]}" for example in examples]
    save_backbone(root / "backbone", texts=texts)
    return root


def overrides(files: Path, *more: str, method: str = "peft") -> list[str]:
    """Return the overrides of a run."""
    return [
        "backbone=llama3",
        f"backbone.name_or_path={files / 'backbone'}",
        "backbone.dtype=float32",
        "data=jsonl",
        f"data.local_dir={files / 'data'}",
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


def finished(files: Path, runs_root: Path, *more: str, method: str = "peft") -> Path:
    """Execute a run and return its directory."""
    before = set(runs_root.glob("*"))
    run_experiment(config(*overrides(files, *more, method=method)), runs_root=runs_root)
    (folder,) = (f for f in set(runs_root.glob("*")) - before if f"-{method}-" in f.name)
    return folder


def original_of(folder: Path) -> Path:
    """Return the directory of a run's original."""
    (original,) = folder.parent.glob("*-original-*")
    return original


def predictions(folder: Path) -> dict[str, pandas.DataFrame]:
    """Read a run's predictions by task."""
    tasks = read_result(folder)["evaluation"]["tasks"]
    return {
        task: read_predictions(folder, task=task, test_set=entry["test_set"], sha256=entry["predictions_sha256"])
        for task, entry in tasks.items()
    }


def assert_same_predictions(one: pandas.DataFrame, other: pandas.DataFrame) -> None:
    """Compare everything but the gate: a router has its own."""
    columns = [name for name in one.columns if not name.startswith("gate")]
    assert_frame_equal(one[columns], other[columns])
