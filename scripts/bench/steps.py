"""Training steps: IMSM with and without hidden-state cache, our PEFT, and the libraries' trainers."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from contextlib import redirect_stdout
from typing import Any

import torch
from peft import LoraConfig, get_peft_model

from imsm.data.batching import collate_training
from imsm.models.siamese.hidden_state_cache import compute_in_memory
from imsm.models.siamese.model import SiameseForCausalLM
from imsm.training.engines.single_device import SingleDeviceEngine
from imsm.training.optimizer import build_lr_scheduler, build_optimizer
from imsm.training.train_step import model_inputs
from scripts.bench.comparison import Comparison
from scripts.bench.timing import medians, timed
from scripts.bench.workloads import Setup, build, plain_backbone, random_batch

Step = Callable[[], object]


def compare_steps(setup: Setup, *, rounds: int) -> list[Comparison]:
    """IMSM against our vanilla PEFT; "checkpointing" recomputes activations in both."""
    imsm, peft = build(setup, stream="interwoven"), build(setup, stream="tuned")
    steps = {
        "imsm, cache": train_step(imsm, setup, cached=True),
        "imsm": train_step(imsm, setup),
        "peft": train_step(peft, setup),
        "imsm, checkpointing": train_step(imsm, setup, checkpointing=True),
        "peft, checkpointing": train_step(peft, setup, checkpointing=True),
    }
    seconds = medians({name: timed(step, device=setup.device) for name, step in steps.items()}, rounds=rounds)

    def row(name: str, ours: str, theirs: str, bar: float) -> Comparison:
        return Comparison(
            name=f"training step, {name}: IMSM / our PEFT",
            ours=seconds[ours],
            theirs=seconds[theirs],
            unit="s",
            bar=bar,
        )

    return [
        row("hidden-state cache filled", "imsm, cache", "peft", 1.05),
        row("no cache", "imsm", "peft", 1.50),
        row("no cache, checkpointing", "imsm, checkpointing", "peft, checkpointing", 1.40),
    ]


def compare_trainer(setup: Setup, *, rounds: int) -> list[Comparison]:
    """Our vanilla PEFT against transformers' `Trainer`, which computes logits at every position."""
    with tempfile.TemporaryDirectory() as folder:
        seconds = _against(setup, trainer_step(setup, folder), rounds=rounds)
    return [
        Comparison(
            name="training step: our PEFT / transformers' Trainer",
            ours=seconds["ours"],
            theirs=seconds["theirs"],
            unit="s",
            bar=0.65,
        )
    ]


def compare_sft(setup: Setup, *, rounds: int) -> list[Comparison]:
    """Our vanilla PEFT against TRL's `SFTTrainer` on completions only."""
    with tempfile.TemporaryDirectory() as folder:
        seconds = _against(setup, sft_step(setup, folder), rounds=rounds)
    return [
        Comparison(
            name="training step: our PEFT / TRL's SFTTrainer",
            ours=seconds["ours"],
            theirs=seconds["theirs"],
            unit="s",
            bar=0.60,
        )
    ]


def _against(setup: Setup, theirs: Step, *, rounds: int) -> dict[str, float]:
    steps = {"ours": train_step(build(setup, stream="tuned"), setup), "theirs": theirs}
    timers = {name: timed(step, device=setup.device) for name, step in steps.items()}
    return medians(timers, rounds=rounds)


def train_step(model: SiameseForCausalLM, setup: Setup, *, cached: bool = False, checkpointing: bool = False) -> Step:
    """Return a function that takes one optimizer step on one batch.

    Args:
        model: model to train.
        setup: shape of the batch.
        cached: whether it reads a hidden-state cache, which is computed here.
        checkpointing: whether activations are recomputed.
    """
    items = random_batch(setup, vocabulary=model.config.vocab_size)
    cache = compute_in_memory(model, items, pad_id=0) if cached else None
    engine = engine_of(model, setup)

    def step() -> None:
        model.train()
        if checkpointing:
            model.activation_checkpointing_enable()
        try:
            batch = model_inputs(engine.device, items, pad_id=0, hidden_state_cache=cache)
            engine.backward(model(**batch).loss, last=True)
            engine.step()
        finally:
            if checkpointing:
                model.activation_checkpointing_disable()

    return step


def engine_of(model: SiameseForCausalLM, setup: Setup) -> SingleDeviceEngine:
    """Return a run's engine for one device, with AdamW and a constant learning rate."""
    optimizer = build_optimizer(model, name="adamw", learning_rate=3e-4, gate_learning_rate=None, weight_decay=0.0)
    schedule = build_lr_scheduler(optimizer, lr_scheduler_type="constant", warmup_ratio=0.0, num_training_steps=100)
    return SingleDeviceEngine(
        model, optimizer=optimizer, lr_scheduler=schedule, max_grad_norm=1.0, device=torch.device(setup.device)
    )


def lora_config(setup: Setup) -> LoraConfig:
    """The LoRA layers that PEFT adds, without PEFT."""
    return LoraConfig(
        task_type="CAUSAL_LM",
        r=setup.lora_rank,
        lora_alpha=setup.lora_rank,
        lora_dropout=0.0,
        target_modules=setup.target_modules,
    )


def _quiet(setup: Setup, folder: str) -> dict[str, Any]:
    """Return arguments of both trainers: the recipe of `train_step`, nothing logged or saved."""
    return {
        "output_dir": folder,
        "per_device_train_batch_size": setup.batch,
        "learning_rate": 3e-4,
        "weight_decay": 0.0,
        "max_grad_norm": 1.0,
        "max_steps": 100,
        "lr_scheduler_type": "constant",
        "report_to": [],
        "save_strategy": "no",
        "disable_tqdm": True,
        "gradient_checkpointing": False,
        "bf16": False,
        "use_cpu": not setup.device.startswith("cuda"),
    }


def trainer_step(setup: Setup, folder: str) -> Step:
    """Return a step of `transformers.Trainer`: `training_step`, clipping, optimizer.

    Raises:
        ImportError: accelerate is missing.
    """
    from transformers import Trainer, TrainingArguments

    model = get_peft_model(plain_backbone(setup), lora_config(setup))
    trainer = Trainer(model=model, args=TrainingArguments(**_quiet(setup, folder)))
    items = random_batch(setup, vocabulary=model.config.get_text_config().vocab_size)
    return _step_of(trainer, collate_training(items, pad_id=0))


def sft_step(setup: Setup, folder: str) -> Step:
    """Return a step of TRL's `SFTTrainer`, with a batch from its own collator.

    Raises:
        ImportError: TRL or datasets is missing.
    """
    from datasets import Dataset
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast
    from trl import SFTConfig, SFTTrainer

    plain = plain_backbone(setup)
    items = random_batch(setup, vocabulary=plain.config.get_text_config().vocab_size)
    rows = {
        "input_ids": [[*item.prompt_ids, *item.answer_ids] for item in items],
        "completion_mask": [[0] * len(item.prompt_ids) + [1] * len(item.answer_ids) for item in items],
    }
    words = Tokenizer(models.WordLevel({"<pad>": 0, "<end>": 1}, unk_token="<end>"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="<end>")
    arguments = _quiet(setup, folder) | {"completion_only_loss": True, "packing": False}
    with open(os.devnull, "w") as quiet, redirect_stdout(quiet):
        trainer = SFTTrainer(
            model=plain,
            args=SFTConfig(**arguments),
            train_dataset=Dataset.from_dict(rows),
            processing_class=tokenizer,
            peft_config=lora_config(setup),
        )
    return _step_of(trainer, next(iter(trainer.get_train_dataloader())))


def _step_of(trainer: Any, batch: dict[str, torch.Tensor]) -> Step:
    trainer.create_optimizer_and_scheduler(num_training_steps=100)
    learned = [p for p in trainer.model.parameters() if p.requires_grad]
    labels = int((batch["labels"] != -100).sum())

    def step() -> None:
        trainer.training_step(trainer.model, dict(batch), num_items_in_batch=torch.tensor(labels))
        torch.nn.utils.clip_grad_norm_(learned, 1.0)
        trainer.optimizer.step()
        trainer.optimizer.zero_grad()

    return step
