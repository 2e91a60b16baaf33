"""Accuracy and size of the shipped weights."""

from __future__ import annotations

import pytest

from imsm.models.backbones.loading import load_backbone, load_tokenizer
from scripts.miniature.build import FOLDER, THRESHOLDS
from scripts.miniature.evaluate import accuracy
from tests.scripts.miniature.shipped import examples_of


@pytest.mark.parametrize("prompts", ["paper", "corrected"])
@pytest.mark.parametrize("task", sorted(THRESHOLDS))
def test_thresholds_are_reached(task: str, prompts: str) -> None:
    model = load_backbone(name_or_path="imsm:miniature")
    tokenizer = load_tokenizer(name_or_path="imsm:miniature")
    found = accuracy(model, tokenizer, examples_of(task, "test", prompts=prompts), task=task)
    assert found >= THRESHOLDS[task]


def test_gsm8k_is_not_learned_in_pretraining() -> None:
    model = load_backbone(name_or_path="imsm:miniature")
    tokenizer = load_tokenizer(name_or_path="imsm:miniature")
    examples = examples_of("gsm8k", "test")[:100]
    assert accuracy(model, tokenizer, examples, task="gsm8k", max_new_tokens=48) < 40


def test_files_are_small() -> None:
    assert sum(path.stat().st_size for path in (FOLDER / "model").iterdir()) < 4e6
    assert sum(path.stat().st_size for path in (FOLDER / "hub").rglob("*.jsonl")) < 4e6
