"""One optimizer step: accumulation, weighting and metrics."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from imsm.data.batching import IGNORE_INDEX, MicroBatching
from imsm.models.siamese.route_loss import ORIGINAL, TARGET
from imsm.training.engines.base import NonFiniteError
from imsm.training.rehearsal import Rehearsal
from imsm.training.train_step import model_inputs, train_step
from tests.models.siamese.tiny import QUERY_GATE
from tests.training.tiny_run import TinyRun, tiny_examples


@pytest.mark.parametrize("gate", [QUERY_GATE, None])
def test_micro_batches_do_not_change_the_losses(tmp_path: Path, gate: dict | None) -> None:
    """Four micro-batches of one, weighted by answer tokens, equal one batch of four."""
    full = TinyRun(tmp_path / "full", method="lora", gate=gate)
    accumulated = TinyRun(tmp_path / "accumulated", method="lora", micro_batch_size=1, gate=gate)
    full.train()
    accumulated.train()
    assert accumulated.losses == pytest.approx(full.losses, abs=2e-5)


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("method", ["lora", "adalora", "loramoe_without_dropout"])
def test_a_token_budget_does_not_change_the_losses(tmp_path: Path, method: str, packed: bool) -> None:
    full = TinyRun(tmp_path / "full", method=method)
    batching = MicroBatching(size=1, tokens=30, packed=packed)
    budget = TinyRun(tmp_path / "budget", method=method, micro_batching=batching)
    for run in (full, budget):
        if method == "loramoe_without_dropout":
            run.callbacks = None  # its balance is that of a micro-batch
        run.train()
    assert budget.losses == pytest.approx(full.losses, abs=2e-5)


def test_scalars_are_read_once_per_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = TinyRun(tmp_path, method="loramoe")
    reads: list[int] = []
    read = torch.Tensor.tolist

    def recorded(values: torch.Tensor) -> object:
        reads.extend([values.numel()] if values.is_floating_point() else [])
        return read(values)

    monkeypatch.setattr(torch.Tensor, "tolist", recorded)
    monkeypatch.setattr(torch.Tensor, "item", None)
    options = {"engine": run.engine, "callbacks": run.callbacks, "pad_id": 0}
    run.model.train()
    monkeypatch.setattr(run.engine, "step", lambda: 0.0)
    train_step([tiny_examples()[:4]], step=1, micro_batching=MicroBatching(size=1), **options)
    assert reads == [12]  # loss, auxiliary loss and gate of four micro-batches


def test_a_loss_per_group_is_the_sum_of_their_means_by_the_number_of_a_full_step(tmp_path: Path) -> None:
    run = TinyRun(tmp_path, method="lora")
    examples = tiny_examples()
    groups = [examples[:2], examples[2:3], examples[3:6]]
    means = []
    for group in groups:
        inputs = model_inputs(torch.device("cpu"), group, pad_id=0, hidden_state_cache=None)
        means.append(run.model(**inputs).loss.item())
    options = {"engine": run.engine, "callbacks": None, "micro_batching": MicroBatching(size=1), "pad_id": 0}
    metrics = train_step(groups, step=1, groups_per_step=2, **options)
    assert metrics["loss"] == pytest.approx(sum(means) / 2, abs=1e-5)


def test_metrics_of_a_step(tmp_path: Path) -> None:
    run = TinyRun(tmp_path, method="loramoe")
    run.model.train()
    options = {"engine": run.engine, "callbacks": run.callbacks, "micro_batching": MicroBatching(size=2), "pad_id": 0}
    metrics = train_step([tiny_examples()[:4]], step=1, **options)
    names = {"loss", "gradient_norm", "learning_rate_adapter", "learning_rate_gate", "auxiliary_loss", "gate_mean"}
    assert metrics.keys() == names
    assert metrics["auxiliary_loss"] > 0 and 0 < metrics["gate_mean"] < 1


def test_a_non_finite_gradient_is_reported_with_the_step_and_changes_nothing(tmp_path: Path) -> None:
    run = TinyRun(tmp_path, method="lora")
    before = {name: value.clone() for name, value in run.engine.trainable_state_dict().items()}
    parameter = next(p for p in run.model.parameters() if p.requires_grad)
    parameter.register_hook(lambda grad: grad * float("nan"))
    with pytest.raises(NonFiniteError, match="gradient norm is nan at step 4"):
        train_step(
            [tiny_examples()[:4]],
            step=4,
            engine=run.engine,
            callbacks=None,
            micro_batching=MicroBatching(size=4),
            pad_id=0,
        )
    for name, value in run.engine.trainable_state_dict().items():
        assert torch.equal(value, before[name])


def test_model_inputs_hold_the_labels_of_the_answers() -> None:
    examples = tiny_examples()[:3]
    inputs = model_inputs(torch.device("cpu"), examples, pad_id=0, hidden_state_cache=None)
    assert inputs.keys() == {"input_ids", "attention_mask", "labels"}
    assert int((inputs["labels"] != IGNORE_INDEX).sum()) == sum(len(example.answer_ids) for example in examples)


@pytest.mark.parametrize("micro_batch_size", [1, 3, 4])
def test_both_sides_of_the_route_loss_count_half(tmp_path: Path, micro_batch_size: int) -> None:
    run = TinyRun(tmp_path, method="lora")
    target, texts = tiny_examples()[:4], tiny_examples()[4:10]
    gate = run.model.gate
    expected = []
    for examples, label in ((target, TARGET), (texts, ORIGINAL)):
        inputs = model_inputs(torch.device("cpu"), examples, pad_id=0, hidden_state_cache=None)
        expected.append(run.model.train()(**inputs, gate_target=label).route_loss)
    gradients = torch.autograd.grad(sum(expected) / 2, list(gate.parameters()))
    found: list[torch.Tensor] = []
    step = run.engine.step

    def recording() -> float:
        found.extend(parameter.grad.clone() for parameter in gate.parameters())
        return step()

    run.engine.step = recording
    metrics = train_step(
        [target],
        step=1,
        engine=run.engine,
        callbacks=None,
        micro_batching=MicroBatching(size=micro_batch_size),
        pad_id=0,
        rehearsal=Rehearsal(texts=texts, loss="kl", weight=3.0, batch_size=6, seed=0),
        route=True,
    )
    assert metrics["gate_loss"] == pytest.approx(expected[0].item(), rel=1e-4)
    assert metrics["rehearsal_gate_loss"] == pytest.approx(expected[1].item(), rel=1e-4)
    for one, other in zip(found, gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-6)
