"""A run of seconds: a tiny backbone learns which word follows which, from a local folder."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from imsm.config.identity import run_name
from imsm.pipeline.run import run_experiment
from imsm.training import trainer
from tests.helpers.config import config
from tests.helpers.figures import no_figures
from tests.helpers.tiny_backbone import save_backbone

WORDS = ["red", "green", "blue", "black", "white", "brown", "pink", "grey"]


def write_word_files(root: Path, **backbone: Any) -> Path:
    """Write the backbone and the data; the answer to a word is the word after it.

    ``backbone`` are further arguments of `save_backbone`.
    """
    data = root / "data"
    data.mkdir()
    pairs = list(zip(WORDS, WORDS[1:] + WORDS[:1], strict=True))
    rows = [{"input": f"after {word} comes", "output": f" {successor}"} for word, successor in pairs]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    for name in ("train", "test"):
        (data / f"{name}.jsonl").write_text(lines)
    save_backbone(root / "backbone", texts=[row["input"] + row["output"] for row in rows], **backbone)
    return root


def word_overrides(files: Path, *more: str, method: str = "imsm") -> list[str]:
    """Return the overrides of a run on these files."""
    return [
        "backbone=llama3",
        f"backbone.name_or_path={files / 'backbone'}",
        "backbone.dtype=float32",
        "logger=none",
        "data=jsonl",
        f"data.local_dir={files / 'data'}",
        "data.metric=contain",
        "data.max_new_tokens=3",
        "evaluation.tasks=[target]",
        "trainer.num_epochs=8",
        "trainer.learning_rate=0.03",
        "trainer.global_batch_size=4",
        f"method={method}",
        *more,
    ]


def run_words(files: Path, runs_root: Path, *more: str, method: str = "imsm") -> Path:
    """Execute a run, without the figures of its report; return its folder."""
    run_config = config(*word_overrides(files, *more, method=method))
    with no_figures():
        run_experiment(run_config, runs_root=runs_root)
    return runs_root / run_name(run_config)


def interrupt_at(monkeypatch: pytest.MonkeyPatch, call: int) -> list[int]:
    """Send SIGINT before the ``call``-th training step; return the list of steps, filled as they run."""
    steps: list[int] = []
    train_step = trainer.train_step

    def interrupting(*arguments: Any, **keywords: Any) -> dict[str, float]:
        steps.append(keywords["step"])
        if len(steps) == call:
            os.kill(os.getpid(), signal.SIGINT)
        return train_step(*arguments, **keywords)

    monkeypatch.setattr(trainer, "train_step", interrupting)
    return steps
