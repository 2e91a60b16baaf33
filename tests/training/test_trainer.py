"""The training loop: what a step is, what a checkpoint gives back, how it stops."""

from __future__ import annotations

import os
import resource
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from imsm.data.tokenization import TokenizedExample
from imsm.models.adapters.adalora import adalora_static
from imsm.models.adapters.base import AdapterSpec
from imsm.models.siamese.hidden_state_cache import HiddenStateCache
from imsm.models.siamese.model import SiameseForCausalLM
from imsm.training.checkpoint import TrainingState, list_checkpoints, read_state, save_checkpoint
from imsm.training.checkpoint_manager import CheckpointManager, checkpoint_to_resume
from imsm.training.engines.single_device import SingleDeviceEngine
from imsm.training.optimizer import build_lr_scheduler, build_optimizer
from imsm.training.trainer import BatchPlan, TrainingSummary, train
from imsm.utils.errors import RunError, UserError
from tests.helpers.adapters import lora
from tests.models.adapters.moe import tiny_loramoe
from tests.models.siamese.tiny import ADAPTERS, QUERY_GATE, tiny_siamese

IDENTITY = {"peft": {"rank": 4}, "seed": 7}


def items(count: int = 12) -> list[TokenizedExample]:
    generator = torch.Generator().manual_seed(1)

    def ids(low: int, high: int) -> tuple[int, ...]:
        length = int(torch.randint(low, high, (), generator=generator))
        return tuple(torch.randint(3, 97, (length,), generator=generator).tolist())

    return [
        TokenizedExample(id=str(i), prompt_ids=ids(4, 12), answer_ids=(*ids(1, 5), 2), task_type=i % 2)
        for i in range(count)
    ]


def dropping_lora() -> AdapterSpec:
    """LoRA with dropout, so that the random state matters."""
    return lora(target_modules=["q_proj", "v_proj"], r=4, lora_alpha=8, lora_dropout=0.2)


def dropping_loramoe() -> AdapterSpec:
    """Experts with dropout, and their balancing constraint."""
    return tiny_loramoe(lora_dropout=0.2)


def regularised_adalora() -> AdapterSpec:
    """AdaLoRA at a fixed rank."""
    return adalora_static(
        target_modules=["q_proj", "v_proj"], init_r=12, lora_alpha=8, lora_dropout=0.0, orth_reg_weight=0.5
    )


class Run:
    """A tiny training run in a folder."""

    def __init__(
        self,
        folder: Path,
        *,
        method: str = "dropping_lora",
        micro: int = 4,
        optimizer: str = "adamw",
        epochs: int = 2,
        gate: dict | None = QUERY_GATE,
        learning_rate: float = 1e-2,
    ) -> None:
        own = {"dropping_lora": dropping_lora, "loramoe": dropping_loramoe}
        own |= {"plain_loramoe": tiny_loramoe, "adalora_static": regularised_adalora}
        adapter = {**own, **ADAPTERS}[method]()
        self.model: SiameseForCausalLM = tiny_siamese("llama", adapter, gate=gate)
        self.folder = folder / "checkpoints"
        self.batching = BatchPlan(num_epochs=epochs, global_batch_size=4, micro_batch_size=micro, seed=7)
        steps = self.batching.num_steps(12)
        build = build_optimizer(
            self.model,
            name=optimizer,
            learning_rate=learning_rate,
            gate_learning_rate=2 * learning_rate,
            weight_decay=0.01,
        )
        schedule = build_lr_scheduler(build, lr_scheduler_type="cosine", warmup_ratio=0.1, num_training_steps=steps)
        self.engine = SingleDeviceEngine(
            self.model, optimizer=build, lr_scheduler=schedule, max_grad_norm=1.0, device=torch.device("cpu")
        )
        self.hooks = adapter.callbacks(self.model.adapted, steps) if adapter.callbacks else None
        self.losses: list[float] = []
        self.auxiliary: list[float | None] = []
        self.stop_after: int | None = None
        self.save_after: int | None = None
        self.kept: dict[str, Any] = {}
        self.validation: list[TokenizedExample] = []
        self.bank: HiddenStateCache | None = None
        self.validation_losses: list[float] = []

    def log(self, step: int, values: dict[str, float]) -> None:
        self.losses.append(values["loss"])
        self.auxiliary.append(values.get("auxiliary_loss"))
        self.validation_losses += [values[k] for k in values if k == "validation_loss"]
        if step == self.stop_after:
            os.kill(os.getpid(), signal.SIGINT)
        if step == self.save_after:
            os.kill(os.getpid(), signal.SIGUSR1)

    def train(
        self, resume: str = "auto", *, bank: Callable[[], HiddenStateCache | None] | None = None
    ) -> TrainingSummary:
        torch.manual_seed(0)
        start = checkpoint_to_resume(resume, self.folder, identity=IDENTITY)
        return train(
            self.model,
            items(),
            engine=self.engine,
            callbacks=self.hooks,
            batch_plan=self.batching,
            checkpoint_manager=CheckpointManager(
                folder=self.folder,
                identity=IDENTITY,
                engine=self.engine,
                callbacks=self.hooks,
                resume_from=start,
                **{"minutes": 60, **self.kept},
            ),
            pad_id=0,
            log=self.log,
            validation_examples=self.validation,
            get_hidden_state_cache=bank or (lambda: self.bank),
        )


@pytest.mark.parametrize("method", ["dropping_lora", "adalora", "ia3", "dora", "loramoe"])
def test_interrupted_and_resumed_is_bit_equal(tmp_path: Path, method: str) -> None:
    optimizer = "adafactor" if method == "ia3" else "adamw"
    whole = Run(tmp_path / "whole", method=method, optimizer=optimizer)
    whole.train()
    first = Run(tmp_path / "parts", method=method, optimizer=optimizer)
    first.stop_after = 3
    with pytest.raises(KeyboardInterrupt):
        first.train()
    assert len(first.losses) == 3
    second = Run(tmp_path / "parts", method=method, optimizer=optimizer)
    summary = second.train()
    assert summary.tokens == 2 * sum(len(i.prompt_ids) + len(i.answer_ids) for i in items())
    assert summary.final_loss == whole.losses[-1]
    assert first.losses + second.losses == whole.losses
    expected = whole.engine.trainable_state_dict()
    for name, value in second.engine.trainable_state_dict().items():
        assert torch.equal(value, expected[name]), name


def test_training_moves_adapter_and_gate_and_nothing_else(tmp_path: Path) -> None:
    run = Run(tmp_path, epochs=6)
    before = {name: p.detach().clone() for name, p in run.model.named_parameters()}
    summary = run.train()
    for name, parameter in run.model.named_parameters():
        assert torch.equal(parameter, before[name]) != parameter.requires_grad, name
    assert sum(run.losses[-3:]) < sum(run.losses[:3])
    assert summary.steps == 18
    assert summary.tokens == 6 * sum(len(i.prompt_ids) + len(i.answer_ids) for i in items())
    assert not run.model.training


@pytest.mark.parametrize("gate", [QUERY_GATE, None])
def test_accumulation_changes_nothing(tmp_path: Path, gate: dict | None) -> None:
    """Four micro-batches of one, weighted by tokens, are one batch of four."""
    whole = Run(tmp_path / "whole", method="lora", gate=gate)
    parts = Run(tmp_path / "parts", method="lora", micro=1, gate=gate)
    whole.train()
    parts.train()
    assert parts.losses == pytest.approx(whole.losses, abs=2e-5)


def test_the_gate_has_its_own_learning_rate(tmp_path: Path) -> None:
    run = Run(tmp_path)
    rates = {group["name"]: group["initial_lr"] for group in run.engine.optimizer.param_groups}
    assert rates == {"adapter": 1e-2, "gate": 2e-2}
    gate = {id(p) for p in run.model.gate.parameters()}
    members = {group["name"]: {id(p) for p in group["params"]} for group in run.engine.optimizer.param_groups}
    assert members["gate"] == gate
    assert not members["adapter"] & gate


def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_good_state(tmp_path: Path) -> None:
    run = Run(tmp_path, method="lora")
    step_of = run.engine.step
    good: dict[str, torch.Tensor] = {}

    def step() -> None:
        step_of()
        if len(run.losses) == 1:  # after the second step, one value blows up in the third's data
            good.update({k: v.clone() for k, v in run.engine.trainable_state_dict().items()})
            with torch.no_grad():
                run.model.backbone.lm_head.weight[5] = float("inf")

    run.engine.step = step  # type: ignore[method-assign]
    with pytest.raises(RunError, match=r"the loss of step 3 is (nan|inf).*last good checkpoint"):
        run.train()
    found = list_checkpoints(run.folder)[0]
    assert read_state(found)["progress"]["step"] == 2
    from safetensors.torch import load_file

    kept = load_file(found / "trainables.safetensors")
    assert all(torch.equal(kept[name], value) for name, value in good.items())


def test_out_of_memory_names_what_to_lower_and_keeps_what_was_learned(tmp_path: Path) -> None:
    run = Run(tmp_path, method="lora")
    backward = run.engine.backward

    def limited(loss: torch.Tensor, *, last: bool) -> None:
        if len(run.losses) == 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        backward(loss, last=last)

    run.engine.backward = limited  # type: ignore[method-assign]
    named = r"step 3 with 4 examples in a pass: try trainer.micro_batch_size=2, .*last checkpoint"
    with pytest.raises(RunError, match=named):
        run.train()
    run.engine.backward = backward  # type: ignore[method-assign]
    assert run.train().steps == 6
    whole = Run(tmp_path / "whole", method="lora")
    whole.train()
    assert run.losses == whole.losses


def test_memory_that_runs_out_while_parameters_move_leaves_the_last_checkpoint(tmp_path: Path) -> None:
    run = Run(tmp_path, method="lora")
    run.save_after = 1
    step_of = run.engine.step

    def half() -> float:
        if len(run.losses) == 2:
            with torch.no_grad():
                next(p for p in run.model.parameters() if p.requires_grad).add_(1)
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return step_of()

    run.engine.step = half  # type: ignore[method-assign]
    with pytest.raises(RunError, match=r"out of memory at step 3 .*last checkpoint is .*step-0*1"):
        run.train()
    assert len(list_checkpoints(run.folder)) == 1
    again, whole = Run(tmp_path, method="lora"), Run(tmp_path / "whole", method="lora")
    again.train()
    whole.train()
    assert run.losses == whole.losses[:2]
    assert again.losses == whole.losses[1:]


def test_a_full_disk_keeps_the_checkpoint_before(tmp_path: Path) -> None:
    run = Run(tmp_path)

    def save(step: int) -> None:
        save_checkpoint(
            run.folder,
            state=TrainingState(step=step),
            metrics={},
            engine=run.engine,
            callbacks=run.hooks,
            identity=IDENTITY,
        )

    save(0)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, before[1]))
    try:
        with pytest.raises(UserError, match=r"could not be written.*those before it are kept"):
            save(1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)
    (found,) = list_checkpoints(run.folder)
    assert read_state(found)["progress"]["step"] == 0
    assert [path.name for path in run.folder.iterdir()] == [found.name]


def test_a_checkpoint_holds_no_frozen_weight_and_no_pickle(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.stop_after = 1
    with pytest.raises(KeyboardInterrupt):
        run.train()
    trainable = sum(4 * p.numel() for p in run.model.parameters() if p.requires_grad)
    sizes = {path.name: path.stat().st_size for path in list_checkpoints(run.folder)[0].iterdir()}
    assert {Path(name).suffix for name in sizes} == {".safetensors", ".json"}
    assert sum(sizes.values()) < 4 * trainable + 20_000


def test_an_interrupt_does_not_wait_for_a_bank_to_be_filled(tmp_path: Path) -> None:
    run = Run(tmp_path)

    def bank() -> None:
        os.kill(os.getpid(), signal.SIGINT)
        pytest.fail("went on")

    with pytest.raises(KeyboardInterrupt):
        run.train(bank=bank)
    (kept,) = list_checkpoints(run.folder)
    assert read_state(kept)["progress"]["step"] == 2
    run.train()
    whole = Run(tmp_path / "whole")
    whole.train()
    assert run.losses == whole.losses


def test_a_bank_is_asked_for_when_the_first_step_reads_it(tmp_path: Path) -> None:
    """Two steps are over by then; a run that goes on later asks at once."""
    run = Run(tmp_path, method="lora")
    asked: list[int] = []

    def bank() -> None:
        asked.append(len(run.losses))

    found = run.train(bank=bank)
    assert asked == [2, 3, 4, 5] and not found.hidden_state_cache
    run = Run(tmp_path / "again", method="lora")
    run.stop_after = 3
    with pytest.raises(KeyboardInterrupt):
        run.train()
    run.stop_after, asked = None, []
    run.train(bank=bank)
    assert asked[0] == 3
