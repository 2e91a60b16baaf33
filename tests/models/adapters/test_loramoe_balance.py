"""LoRAMoE's balancing constraint: its formula, its padding, its place in a training step."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from imsm.data.batching import collate_training, training_order
from imsm.models.adapters.loramoe import BalancingLossCallback, localised_imbalance
from imsm.models.siamese.model import SiameseForCausalLM
from imsm.utils.errors import UserError
from tests.models.adapters.moe import EXPERTS, gates_in_numpy, imbalance_in_numpy, layers_of, tiny_loramoe
from tests.models.siamese.tiny import QUERY_GATE, padded, prompts, tiny_siamese
from tests.training.test_trainer import Run, items

TYPES = [0, 1, 0]
CLOSE = {"atol": 1e-5, "rtol": 1e-5}


def balanced(*, gate: dict | None = QUERY_GATE, **changes: object) -> tuple[SiameseForCausalLM, BalancingLossCallback]:
    adapter = tiny_loramoe(**changes)
    model = tiny_siamese("llama", adapter, gate=gate).train()
    assert adapter.callbacks is not None
    hooks = adapter.callbacks(model.adapted, 10)
    assert isinstance(hooks, BalancingLossCallback)
    return model, hooks


def batch(side: str = "right") -> dict[str, torch.Tensor]:
    ids, mask = padded(prompts(), side=side)
    labels = ids.where((mask.cumsum(1) > 4) & mask.bool(), -100)
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def auxiliary(
    model: SiameseForCausalLM, hooks: BalancingLossCallback, inputs: dict[str, torch.Tensor], types: list[int]
) -> torch.Tensor:
    hooks.before_forward(inputs["attention_mask"], torch.tensor(types))
    model(**inputs)
    return hooks.auxiliary_loss()


@pytest.mark.parametrize("delta", [0.0, 0.1, 0.7])
@pytest.mark.parametrize("types", [[0, 0, 0], [1, 1, 1], [0, 1, 0]])
def test_the_formula(delta: float, types: list[int]) -> None:
    mass = torch.rand(5, 3, 6, generator=torch.Generator().manual_seed(4)) + 0.1
    found = localised_imbalance(mass, torch.tensor(types), delta=delta)
    expected = [imbalance_in_numpy(each.numpy(), types, delta=delta) for each in mass]
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-5)


def test_its_minimum_routes_less_to_a_types_own_half() -> None:
    """As the formula has it: (1 - delta) / (1 + delta), whatever the halves are called."""
    mass = torch.tensor([[[0.9, 0.9, 1.1, 1.1], [1.1, 1.1, 0.9, 0.9]]])
    tilted = localised_imbalance(mass, torch.tensor([1, 0]), delta=0.1)
    even = localised_imbalance(torch.ones_like(mass), torch.tensor([1, 0]), delta=0.1)
    other = localised_imbalance(mass, torch.tensor([0, 1]), delta=0.1)
    assert tilted < 1e-3 < even < other


@pytest.mark.parametrize("gate", [QUERY_GATE, None], ids=["imsm", "peft"])
@pytest.mark.parametrize("mask_padding", [True, False])
@pytest.mark.parametrize("side", ["left", "right"])
def test_the_loss_of_a_real_pass(gate: dict | None, mask_padding: bool, side: str) -> None:
    model, hooks = balanced(gate=gate, mask_padding=mask_padding)
    seen: dict[int, torch.Tensor] = {}
    for index, layer in enumerate(layers_of(model)):
        layer.base_layer.register_forward_hook(  # the last pass is the tuned stream's
            lambda _, given, __, index=index: seen.__setitem__(index, given[0])
        )
    inputs = batch(side)
    found = auxiliary(model, hooks, inputs, TYPES)
    expected = 0.0
    counted = inputs["attention_mask"].numpy() if mask_padding else 1.0
    for index, layer in enumerate(layers_of(model)):
        gates = gates_in_numpy(layer, seen[index])
        mass = (gates * np.broadcast_to(counted, gates.shape[:2])[..., None]).sum(1)
        expected += 0.5 * imbalance_in_numpy(mass, TYPES, delta=0.1)
    assert found.item() == pytest.approx(expected, rel=1e-5)
    assert len(seen) == 9


def test_padding_counts_only_where_it_is_asked_for() -> None:
    for mask_padding in (True, False):
        model, hooks = balanced(mask_padding=mask_padding)
        inputs = batch()
        wider = {
            name: torch.nn.functional.pad(value, (0, 5), value=-100 if name == "labels" else 0)
            for name, value in inputs.items()
        }
        narrow, wide = (auxiliary(model, hooks, each, TYPES) for each in (inputs, wider))
        assert torch.isclose(narrow, wide, rtol=1e-5) == mask_padding


def test_the_task_types_matter_and_delta_is_why() -> None:
    for delta, matters in ((0.1, True), (0.0, False)):
        model, hooks = balanced(blc_alpha=delta)
        losses = [auxiliary(model, hooks, batch(), types).item() for types in (TYPES, [1, 0, 0])]
        assert (losses[0] != losses[1]) == matters


@pytest.mark.parametrize("gate", [QUERY_GATE, None], ids=["imsm", "peft"])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_gradient_checkpointing_changes_no_gradient(gate: dict | None, dropout: float) -> None:
    gradients, losses = [], []
    for checkpointing in (False, True):
        model, hooks = balanced(gate=gate, dropout=dropout, per_expert_dropout=True)
        if checkpointing:
            model.activation_checkpointing_enable()
        inputs = batch()
        torch.manual_seed(3)
        for _ in range(2):  # a second micro-batch begins anew
            hooks.before_forward(inputs["attention_mask"], torch.tensor(TYPES))
            loss = model(**inputs).loss
            added = hooks.auxiliary_loss()
            (loss + added).backward()
        losses.append((loss.item(), added.item()))
        gradients.append({n: p.grad for n, p in model.named_parameters() if p.requires_grad})
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, msg=name, **CLOSE)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_constraint_alone_moves_routers_and_nothing_behind_the_last(checkpointing: bool) -> None:
    model, hooks = balanced()
    if checkpointing:
        model.activation_checkpointing_enable()
    auxiliary(model, hooks, batch(), TYPES).backward()
    for layer in layers_of(model):
        assert layer.router.grad is not None
        assert layer.router.grad.abs().max() > 0
    last = layers_of(model)[-1]
    assert last.up.grad is None or not last.up.grad.any()


def test_other_passes_leave_no_routing_behind() -> None:
    model, hooks = balanced()
    inputs = batch()
    expected = auxiliary(model, hooks, inputs, TYPES)
    model.eval()
    model.generate(torch.tensor(prompts()[:1]), max_new_tokens=3)  # doubled passes
    model.train()
    model(torch.tensor([[5, 6, 7]]), query_mask=torch.ones(1, 2))  # another shape, in training
    assert torch.equal(auxiliary(model, hooks, inputs, TYPES), expected)
    with pytest.raises(RuntimeError, match="no layer left its routing"):
        hooks.auxiliary_loss()


def test_routing_without_a_gradient_is_refused() -> None:
    model, hooks = balanced(gate=None)
    model.activation_checkpointing_enable({"use_reentrant": True})
    inputs = batch()
    hooks.before_forward(inputs["attention_mask"], torch.tensor(TYPES))
    with pytest.raises(RuntimeError, match="reentrant"):
        model(**inputs)
        hooks.auxiliary_loss()


def test_a_layer_that_sees_some_tokens_only_is_refused() -> None:
    model, hooks = balanced()
    inputs = batch()
    hooks.before_forward(inputs["attention_mask"][:, :-1], torch.tensor(TYPES))
    with pytest.raises(UserError, match=r"peft\.blc_weight=0"):
        model(**inputs)


def test_flattened_tokens_are_told_apart_by_their_number() -> None:
    model, hooks = balanced()
    layer = layers_of(model)[0]
    mask = torch.tensor([[1, 1, 0], [1, 1, 1]])
    rows = torch.randn(2, 3, layer.in_features, generator=torch.Generator().manual_seed(1))
    masses = []
    for shaped in (rows, rows.flatten(0, 1)):
        hooks.before_forward(mask, torch.tensor([0, 1]))
        layer(shaped)
        masses.append(hooks.routing.close())
    assert masses[0].shape == (1, 2, EXPERTS)
    torch.testing.assert_close(masses[1], masses[0])
    torch.testing.assert_close(masses[0].sum(-1), torch.tensor([[2.0, 3.0]]))


def test_learning_the_constraint_evens_the_routing_out() -> None:
    model, hooks = balanced(gate=None)
    optimizer = torch.optim.Adam([layer.router for layer in layers_of(model)], lr=0.05)
    losses = []
    for _ in range(15):
        loss = auxiliary(model, hooks, batch(), TYPES)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]


@pytest.mark.parametrize("micro", [4, 2, 1])
def test_a_step_adds_the_mean_over_micro_batches(micro: int, tmp_path: Path) -> None:
    """However a batch is cut, the cross-entropy is the same; the constraint is the parts' mean."""
    run = Run(tmp_path, method="plain_loramoe", micro=micro, epochs=1)
    assert isinstance(run.hooks, BalancingLossCallback)
    first = [items()[i] for i in training_order(12, batch_size=4, seed=7, epoch=0)[0]]
    expected, cross_entropy = 0.0, 0.0
    run.model.train()
    for start in range(0, 4, micro):
        part = first[start : start + micro]
        inputs = collate_training(part, pad_id=0)
        run.hooks.before_forward(inputs["attention_mask"], torch.tensor([e.task_type for e in part]))
        labels = sum(len(each.answer_ids) for each in first)
        cross_entropy += run.model(**inputs, num_items_in_batch=labels).loss.item()
        expected += run.hooks.auxiliary_loss().item() * micro / 4
    run.train()
    assert run.auxiliary[0] == pytest.approx(expected, rel=1e-5)
    assert run.losses[0] == pytest.approx(cross_entropy, rel=1e-5)
    whole = Run(tmp_path / "whole", method="plain_loramoe", micro=4, epochs=1)
    whole.train()
    assert run.losses[0] == pytest.approx(whole.losses[0], rel=1e-5)
    assert (run.auxiliary[0] != pytest.approx(whole.auxiliary[0], rel=1e-3)) == (micro < 4)
