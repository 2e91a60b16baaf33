"""A training of a tiny model in a folder, and its examples."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from imsm.data.batching import MicroBatching
from imsm.data.tokenization import TokenizedExample
from imsm.models.adapters.adalora import adalora_static
from imsm.models.adapters.base import AdapterSpec
from imsm.models.siamese.hidden_state_cache import HiddenStateCache
from imsm.models.siamese.model import SiameseForCausalLM
from imsm.training.checkpoint import list_checkpoints, read_state
from imsm.training.checkpoint_manager import CheckpointManager, checkpoint_to_resume
from imsm.training.engines.single_device import SingleDeviceEngine
from imsm.training.optimizer import build_lr_scheduler, build_optimizer
from imsm.training.rehearsal import Rehearsal
from imsm.training.trainer import AtSaveStep, BatchPlan, TrainingSummary, train
from tests.helpers.adapters import lora
from tests.models.adapters.moe import tiny_loramoe
from tests.models.siamese.tiny import ADAPTERS, QUERY_GATE, tiny_siamese

IDENTITY = {"peft": {"rank": 4}, "seed": 7}


def tiny_examples(count: int = 12) -> list[TokenizedExample]:
    generator = torch.Generator().manual_seed(1)

    def ids(low: int, high: int) -> tuple[int, ...]:
        length = int(torch.randint(low, high, (), generator=generator))
        return tuple(torch.randint(3, 97, (length,), generator=generator).tolist())

    return [
        TokenizedExample(id=str(i), prompt_ids=ids(4, 12), answer_ids=(*ids(1, 5), 2), task_type=i % 2)
        for i in range(count)
    ]


NUM_TOKENS = sum(len(example.prompt_ids) + len(example.answer_ids) for example in tiny_examples())


def lora_with_dropout() -> AdapterSpec:
    """With dropout the random state matters."""
    return lora(target_modules=["q_proj", "v_proj"], r=4, lora_alpha=8, lora_dropout=0.2)


def loramoe_with_dropout() -> AdapterSpec:
    return tiny_loramoe(lora_dropout=0.2)


def fixed_rank_adalora() -> AdapterSpec:
    return adalora_static(
        target_modules=["q_proj", "v_proj"], init_r=12, lora_alpha=8, lora_dropout=0.0, orth_reg_weight=0.5
    )


METHODS: dict[str, Callable[[], AdapterSpec]] = {
    **ADAPTERS,
    "lora_with_dropout": lora_with_dropout,
    "loramoe": loramoe_with_dropout,
    "loramoe_without_dropout": tiny_loramoe,
    "adalora_static": fixed_rank_adalora,
}


class TinyRun:
    """Twelve examples in global batches of four: three steps per epoch."""

    def __init__(
        self,
        folder: Path,
        *,
        method: str = "lora_with_dropout",
        micro_batch_size: int = 4,
        micro_batching: MicroBatching | None = None,
        optimizer: str = "adamw",
        num_epochs: int = 2,
        gate: dict | None = QUERY_GATE,
        learning_rate: float = 1e-2,
    ) -> None:
        adapter = METHODS[method]()
        self.model: SiameseForCausalLM = tiny_siamese("llama", adapter, gate=gate)
        self.folder = folder / "checkpoints"
        self.batch_plan = BatchPlan(
            num_epochs=num_epochs,
            global_batch_size=4,
            micro_batching=micro_batching or MicroBatching(size=micro_batch_size),
            seed=7,
        )
        num_steps = self.batch_plan.num_steps(12)
        torch_optimizer = build_optimizer(
            self.model,
            name=optimizer,
            learning_rate=learning_rate,
            gate_learning_rate=2 * learning_rate,
            weight_decay=0.01,
        )
        lr_scheduler = build_lr_scheduler(
            torch_optimizer, lr_scheduler_type="cosine", warmup_ratio=0.1, num_training_steps=num_steps
        )
        self.engine = SingleDeviceEngine(
            self.model,
            optimizer=torch_optimizer,
            lr_scheduler=lr_scheduler,
            max_grad_norm=1.0,
            device=torch.device("cpu"),
        )
        self.callbacks = adapter.callbacks(self.model.adapted, num_steps) if adapter.callbacks else None
        self.losses: list[float] = []
        self.auxiliary_losses: list[float | None] = []
        self.validation_losses: list[float] = []
        self.stop_after: int | None = None
        self.save_after: int | None = None
        self.save_options: dict[str, Any] = {}
        self.validation_examples: list[TokenizedExample] = []
        self.cache: HiddenStateCache | None = None
        self.rehearsal: Rehearsal | None = None
        self.rehearsal_losses: list[float] = []
        self.at_save_step: AtSaveStep | None = None
        self.deterministic = False

    def log(self, step: int, metrics: dict[str, float]) -> None:
        self.losses.append(metrics["loss"])
        self.auxiliary_losses.append(metrics.get("auxiliary_loss"))
        self.rehearsal_losses += [metrics["rehearsal_loss"]] if "rehearsal_loss" in metrics else []
        self.validation_losses += [metrics["validation_loss"]] if "validation_loss" in metrics else []
        if step == self.stop_after:
            os.kill(os.getpid(), signal.SIGINT)
        if step == self.save_after:
            os.kill(os.getpid(), signal.SIGUSR1)

    def train(
        self, resume: str = "auto", *, get_cache: Callable[[], HiddenStateCache | None] | None = None
    ) -> TrainingSummary:
        torch.manual_seed(0)
        return train(
            self.model,
            tiny_examples(),
            engine=self.engine,
            callbacks=self.callbacks,
            batch_plan=self.batch_plan,
            checkpoint_manager=self.checkpoint_manager(
                resume_from=checkpoint_to_resume(resume, self.folder, identity=IDENTITY), **self.save_options
            ),
            pad_id=0,
            log=self.log,
            validation_examples=self.validation_examples,
            get_hidden_state_cache=get_cache or (lambda: self.cache),
            rehearsal=self.rehearsal,
            at_save_step=self.at_save_step,
            deterministic=self.deterministic,
        )

    def checkpoint_manager(self, **options: Any) -> CheckpointManager:
        return CheckpointManager(
            folder=self.folder,
            identity=IDENTITY,
            engine=self.engine,
            callbacks=self.callbacks,
            **{"save_minutes": 60, **options},
        )

    def saved_steps(self) -> list[int]:
        """Return the steps of the checkpoints, newest first."""
        return [read_state(path)["training_state"]["step"] for path in list_checkpoints(self.folder)]


def stopped_run(folder: Path, *, after: int = 4, **save_options: int) -> TinyRun:
    """Return a run that was interrupted after a step."""
    run = TinyRun(folder)
    run.save_options = dict(save_options)
    run.stop_after = after
    with pytest.raises(KeyboardInterrupt):
        run.train()
    return run


def assert_equal_trainables(run: TinyRun, expected: TinyRun) -> None:
    values = expected.engine.trainable_state_dict()
    for name, value in run.engine.trainable_state_dict().items():
        assert torch.equal(value, values[name]), name
