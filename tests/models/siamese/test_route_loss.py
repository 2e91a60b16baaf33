"""The route loss against a plain computation, and the gradients of joint training."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional

from imsm.models.siamese.gate import Gate, build_gate
from imsm.models.siamese.route_loss import ORIGINAL, TARGET, route_loss_sum
from tests.models.siamese.tiny import QUERY_GATE, labelled_batch, tiny_siamese

SCALAR_GATE = {**QUERY_GATE, "granularity": "scalar"}
MINIMUM_GATE = {**QUERY_GATE, "min_original_weight": 0.2}
QUERY_SHARE_GATE = {**QUERY_GATE, "inputs": ["original", "tuned"], "query_share": 0.3}


class CustomGate(nn.Module):
    """Returns values without a logit."""

    reads_query = False

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.layer = nn.Linear(2 * hidden_size, hidden_size)

    def forward(self, original: torch.Tensor, tuned: torch.Tensor, *queries: torch.Tensor) -> torch.Tensor:
        return torch.sigmoid(self.layer(torch.cat([original, tuned], dim=-1)))


def rows(count: int = 7, width: int = 32) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(4)
    return [torch.randn(count, width, generator=generator) for _ in range(4)]


@pytest.mark.parametrize("label", [TARGET, ORIGINAL])
@pytest.mark.parametrize("gate", [QUERY_GATE, SCALAR_GATE, MINIMUM_GATE, None], ids=str)
def test_it_is_the_mean_of_minus_the_logarithm_of_the_right_weight(gate: dict | None, label: float) -> None:
    torch.manual_seed(0)
    module = CustomGate(32) if gate is None else build_gate(hidden_size=32, **gate)
    inputs = rows()
    loss, weight = route_loss_sum(module, *inputs, label=label)
    right = weight if label == ORIGINAL else 1 - weight
    assert torch.allclose(loss, -right.log().mean(dim=1).sum(), rtol=1e-5)
    assert torch.equal(weight, module(*inputs))
    assert not weight.requires_grad


def test_a_saturated_gate_keeps_a_gradient() -> None:
    gate = Gate(hidden_size=4, inputs=[], rank=None, bias=60.0)
    loss, weight = route_loss_sum(gate, *rows(width=4), label=TARGET)
    assert weight.eq(1).all() and loss.item() == pytest.approx(7 * 60.0)
    loss.backward()
    assert torch.allclose(gate.bias.grad, torch.full((4,), 7 / 4))


def test_values_of_a_custom_gate_at_0_give_a_finite_loss() -> None:
    class Zero(nn.Module):
        def forward(self, original: torch.Tensor, *others: torch.Tensor) -> torch.Tensor:
            return torch.zeros_like(original)

    loss, _ = route_loss_sum(Zero(), *rows(), label=ORIGINAL)
    assert loss.isfinite()


@pytest.mark.parametrize("gate", [QUERY_GATE, SCALAR_GATE, QUERY_SHARE_GATE], ids=str)
def test_joint_training_gives_the_adapter_the_gradient_of_a_constant_gate(gate: dict) -> None:
    """The reference mixes the hidden states with saved gate values and applies the head."""
    model = tiny_siamese(gate=gate).train()
    _, batch = labelled_batch(side="right")
    output = model(**batch, gate_target=TARGET, num_items_in_batch=9)
    (output.loss + output.route_loss).backward()
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad}

    plain = copy.deepcopy(model)
    plain.zero_grad()
    labelled = plain._labelled_batch(
        batch["input_ids"], batch["labels"], None, attention_mask=batch["attention_mask"], **positions_of(batch)
    )
    positions = plain._label_positions(labelled)
    original, tuned, *queries = positions.gate_inputs
    original, tuned = plain.gate.with_query(original, tuned, *queries)
    weight = plain.gate(original.detach(), tuned.detach(), *(q if q is None else q.detach() for q in queries))
    constant = weight.detach()
    logits = plain.head(constant * original + (1 - constant) * tuned)
    loss = functional.cross_entropy(logits, positions.targets, reduction="sum") / 9
    bce = -(1 - weight).log().mean(dim=-1).sum() / 9
    (loss + bce).backward()
    assert torch.allclose(output.loss, loss, rtol=1e-5) and torch.allclose(output.route_loss, bce, rtol=1e-4)
    for name, parameter in plain.named_parameters():
        if parameter.requires_grad:
            assert torch.allclose(found[name], parameter.grad, rtol=1e-3, atol=1e-6), name


def positions_of(batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    mask = batch["attention_mask"]
    return {"position_ids": (mask.cumsum(dim=1) - 1).clamp(min=0)}


def test_a_frozen_adapter_needs_no_head(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_siamese().train()
    for parameter in model.adapted.parameters():
        parameter.requires_grad_(False)
    monkeypatch.setattr(type(model), "head", None)
    _, batch = labelled_batch(side="right")
    output = model(**batch, gate_target=ORIGINAL)
    assert output.loss is None and output.route_loss is not None
    output.route_loss.backward()
    assert all(parameter.grad is not None for parameter in model.gate.parameters())


def test_micro_batches_add_up_to_the_batch() -> None:
    model = tiny_siamese().train()
    _, batch = labelled_batch(side="right")
    whole = model(**batch, gate_target=TARGET, num_items_in_batch=9).route_loss
    parts = [
        model(**{name: value[i : i + 1] for name, value in batch.items()}, gate_target=TARGET, num_items_in_batch=9)
        for i in range(3)
    ]
    assert torch.allclose(whole, sum(part.route_loss for part in parts), rtol=1e-5)
