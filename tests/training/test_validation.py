"""The validation loss."""

from __future__ import annotations

from pathlib import Path

import pytest

from imsm.data.batching import MicroBatching
from imsm.training.validation import validation_loss
from tests.training.tiny_run import TinyRun, tiny_examples


def test_validation_does_not_change_the_training(tmp_path: Path) -> None:
    """Dropout draws the same random numbers, and the validation loss is measured without it."""
    run, validated = TinyRun(tmp_path / "a"), TinyRun(tmp_path / "b")
    run.save_options = validated.save_options = {"save_steps": 1}
    run.train()
    validated.validation_examples = tiny_examples()[:5]
    validated.train()
    assert validated.losses == run.losses
    assert len(validated.validation_losses) == 6
    model, engine = validated.model.train(), validated.engine
    losses = [
        validation_loss(model, tiny_examples()[:5], engine=engine, pad_id=0, micro_batching=MicroBatching(size=size))
        for size in (1, 2, 5)
    ]
    assert losses == pytest.approx([validated.validation_losses[-1]] * 3, abs=1e-6)
    assert model.training
