"""AdaLoRA: the rank schedule, its checkpoint, the penalty, and the variant with constant ranks."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import PeftModel

from imsm.config.identity import comparable_up_to_method, run_identity
from imsm.models.adapters.adalora import AdaLoraCallback, adalora, adalora_static
from imsm.models.adapters.base import AdapterSpec, attach_adapter
from imsm.utils.errors import UserError
from tests.helpers.config import config
from tests.models.adapters.test_base import LLAMA3, without_weights
from tests.models.siamese.tiny import tiny_backbone
from tests.training.tiny_run import TinyRun

MODULES = 6  # q and v in three layers
STEPS = 20
ARGUMENTS = {
    "target_modules": ["q_proj", "v_proj"],
    "init_r": 6,
    "target_r": 2,
    "lora_alpha": 8,
    "lora_dropout": 0.0,
    "tinit_ratio": 0.1,
    "tfinal_ratio": 0.3,
    "deltaT": 2,
    "orth_reg_weight": 0.5,
}


class Training:
    """A real optimizer on a tiny model, with the callbacks where the loop calls them."""

    def __init__(self) -> None:
        adapter = adalora(**ARGUMENTS)
        torch.manual_seed(0)
        self.model: PeftModel = attach_adapter(adapter, tiny_backbone("llama"))
        self.callbacks = adapter.callbacks(self.model, STEPS)
        assert isinstance(self.callbacks, AdaLoraCallback)
        self.trainable = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(self.trainable, lr=1e-2)

    def run(self, first: int, last: int) -> list[int]:
        """Steps first..last; returns how many directions are alive after each."""
        alive = []
        for step in range(first, last + 1):
            ids = torch.randint(3, 97, (2, 8), generator=torch.Generator().manual_seed(step))
            self.model(ids, labels=ids).loss.backward()
            self.callbacks.auxiliary_loss().backward()
            self.callbacks.after_backward(step)
            self.optimizer.step()
            self.optimizer.zero_grad()
            self.callbacks.after_step(step)
            alive.append(self.alive())
        return alive

    def alive(self) -> int:
        return sum(int((p != 0).sum()) for n, p in self.model.named_parameters() if "lora_E" in n)


def test_ranks_fall_to_the_target_and_stay() -> None:
    alive = Training().run(1, STEPS)
    assert alive[1] == 6 * MODULES  # warming up
    assert 2 * MODULES < alive[7] < 6 * MODULES  # falling, on the steps of the interval
    assert alive[13:] == [2 * MODULES] * (STEPS - 13)  # and then fixed, momentum or not
    assert alive[3::2][:5] == sorted(alive[3::2][:5], reverse=True)


def test_the_budget_is_the_papers_cubic_schedule() -> None:
    allocator = Training().callbacks.allocator
    start, end, first, last = 36, 12, 2, 14
    for step in range(first + 1, last):
        left = 1 - (step - first) / (last - first)
        assert allocator.budget_schedule(step)[0] == int((start - end) * left**3 + end)


def test_training_resumes_from_a_checkpoint() -> None:
    whole = Training()
    whole.run(1, STEPS)
    for stop in (1, 9, 17):
        before = Training()
        before.run(1, stop)
        state = {name: value.clone() for name, value in before.callbacks.state().items()}
        after = Training()
        after.model.load_state_dict(before.model.state_dict())
        after.optimizer.load_state_dict(before.optimizer.state_dict())
        after.callbacks.load_state(state)
        after.run(stop + 1, STEPS)
        for name, parameter in whole.model.named_parameters():
            assert torch.equal(parameter, dict(after.model.named_parameters())[name]), name


def test_the_penalty_equals_its_formula() -> None:
    training = Training()
    norms = []
    for name, weight in training.model.named_parameters():
        if "lora_A" in name:  # Q, (rank, in): its rows
            norms.append((weight @ weight.T - torch.eye(6)).pow(2).sum().sqrt())
        elif "lora_B" in name:  # P, (out, rank): its columns
            norms.append((weight.T @ weight - torch.eye(6)).pow(2).sum().sqrt())
    assert len(norms) == 2 * MODULES
    expected = 0.5 * sum(norms) / len(norms)
    torch.testing.assert_close(training.callbacks.auxiliary_loss(), expected)
    ids = torch.tensor([[5, 6, 7]])
    added = training.model(ids, labels=ids).loss - training.model.base_model.model(ids, labels=ids).loss
    torch.testing.assert_close(added, expected, atol=1e-4, rtol=1e-4)  # as PEFT adds it


@pytest.mark.parametrize(
    "wrong", [{"target_r": 7}, {"target_r": 0}, {"tinit_ratio": 0.6, "tfinal_ratio": 0.4}, {"tinit_ratio": -0.1}]
)
def test_an_impossible_schedule_is_rejected(wrong: dict) -> None:
    with pytest.raises(UserError, match=next(iter(wrong))):
        adalora(**{**ARGUMENTS, **wrong})


@pytest.mark.parametrize("steps", [1, 2, 3, 7])
def test_short_runs_end_at_the_target(steps: int) -> None:
    adapter = adalora(**ARGUMENTS)
    model = attach_adapter(adapter, tiny_backbone("llama"))
    callbacks = adapter.callbacks(model, steps)
    trainable = [p for p in model.parameters() if p.requires_grad]
    with torch.no_grad():
        for parameter in trainable:
            parameter.add_(0.1)
    for step in range(1, steps + 1):
        ids = torch.tensor([[5, 6, 7, step]])
        model(ids, labels=ids).loss.backward()
        callbacks.after_backward(step)
        callbacks.after_step(step)
    alive = sum(int((p != 0).sum()) for n, p in model.named_parameters() if "lora_E" in n)
    assert alive == 2 * MODULES


def static(*, weight: float) -> AdapterSpec:
    return adalora_static(
        target_modules=["q_proj", "v_proj"], init_r=12, lora_alpha=16, lora_dropout=0.0, orth_reg_weight=weight
    )


def test_parameter_count_with_constant_ranks() -> None:
    adapted = attach_adapter(static(weight=0.5), without_weights(LLAMA3))
    assert sum(p.numel() for p in adapted.parameters() if p.requires_grad) == 5112576  # 5.113M


def test_only_method_peft_has_the_penalty() -> None:
    runs = {method: config("peft=adalora_static", f"method={method}") for method in ("peft", "imsm")}
    weights = {name: run.peft.arguments()["orth_reg_weight"] for name, run in runs.items()}
    assert weights == {"peft": 0.5, "imsm": 0.0}
    identities = [run_identity(run) for run in runs.values()]
    assert comparable_up_to_method(*identities)
    other = run_identity(config("peft=adalora_static", "method=imsm", "peft.init_r=8"))
    assert not comparable_up_to_method(identities[0], other)


def test_the_penalty_equals_that_of_peft() -> None:
    adapted = attach_adapter(static(weight=0.5), tiny_backbone("llama"))
    callbacks = static(weight=0.5).callbacks(adapted, 10)
    ids = torch.tensor([[5, 6, 7]])
    added = adapted(ids, labels=ids).loss - adapted.base_model.model(ids, labels=ids).loss
    torch.testing.assert_close(callbacks.auxiliary_loss(), added, atol=1e-4, rtol=1e-4)
    assert static(weight=0.0).callbacks is None


@pytest.mark.parametrize(("method", "moves"), [("adalora_static", False), ("adalora", True)])
def test_ranks_change_only_with_the_schedule(method: str, moves: bool, tmp_path: Path) -> None:
    run = TinyRun(tmp_path, method=method, num_epochs=2)
    run.train()
    ranks = {name: int((value != 0).sum()) for name, value in run.model.named_parameters() if "lora_E" in name}
    assert len(ranks) == 6
    start = 6 if method == "adalora" else 12
    assert (sum(ranks.values()) < start * len(ranks)) == moves
    if moves:  # the importances differ between modules, and so do the ranks that are left
        assert sum(ranks.values()) == 3 * len(ranks)
        assert len(set(ranks.values())) > 1
