"""Rehearsal: the texts of a step, their loss and its gradient."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.nn import functional

from imsm.data.batching import MicroBatching, collate_training
from imsm.data.tokenization import TokenizedExample
from imsm.models.siamese.hidden_state_cache import compute_in_memory
from imsm.models.siamese.model import SiameseForCausalLM
from imsm.training.rehearsal import Rehearsal
from imsm.training.train_step import train_step
from tests.models.siamese.tiny import QUERY_GATE
from tests.training.tiny_run import TinyRun, assert_equal_trainables, tiny_examples

TEXTS = tiny_examples(17)[12:]
GATES = pytest.mark.parametrize("gate", [QUERY_GATE, None], ids=["imsm", "peft"])


def rehearsal(loss: str = "kl", weight: float = 0.5, batch_size: int = 3) -> Rehearsal:
    return Rehearsal(texts=TEXTS, loss=loss, weight=weight, batch_size=batch_size, seed=7)  # type: ignore[arg-type]


def rehearsing(folder: Path, *, cached: bool = False, texts: Rehearsal | None = None, **options: object) -> TinyRun:
    run = TinyRun(folder, **options)  # type: ignore[arg-type]
    texts = texts or rehearsal()
    if cached:
        cache = compute_in_memory(run.model, TEXTS, pad_id=0)
        texts = Rehearsal(**{**vars(texts), "get_hidden_state_cache": lambda: cache})
        run.cache = compute_in_memory(run.model, tiny_examples(), pad_id=0)
    run.rehearsal = texts
    return run


def plain_loss(model: SiameseForCausalLM, texts: list[TokenizedExample], *, loss: str) -> torch.Tensor:
    """Compute the loss from logits of all positions, without label positions, caches or chunks."""
    batch = collate_training(texts, pad_id=0)
    labels, inputs = batch["labels"], {key: batch[key] for key in ("input_ids", "attention_mask")}
    stream, counted = model.stream, labels[:, 1:] != -100
    # the query of a text is what stands before its cut
    query = (labels == -100) & (batch["attention_mask"] == 1)
    logits = model(**inputs, query_mask=query.long()).logits[:, :-1][counted]
    if loss == "ce":
        return functional.cross_entropy(logits, labels[:, 1:][counted])
    model.stream = "original"
    with torch.no_grad():
        original = model(**inputs).logits[:, :-1][counted]
    model.stream = stream
    probabilities = original.softmax(dim=-1)
    return functional.kl_div(logits.log_softmax(dim=-1), probabilities, reduction="batchmean")


@GATES
@pytest.mark.parametrize("loss", ["kl", "ce"])
def test_the_gradient_equals_that_of_two_plain_forward_passes(tmp_path: Path, gate: dict | None, loss: str) -> None:
    """The step's gradient is that of the target plus 0.5 times that of the texts."""
    run = TinyRun(tmp_path, method="lora", gate=gate)
    settings = rehearsal(loss)
    parameters = [p for p in run.model.parameters() if p.requires_grad]
    target = tiny_examples()[:4]
    inputs = collate_training(target, pad_id=0)
    expected_loss = plain_loss(run.model, settings.batch(1), loss=loss)
    expected = torch.autograd.grad(run.model(**inputs).loss + 0.5 * expected_loss, parameters)
    found: list[torch.Tensor] = []

    def keep_and_skip() -> float:
        found.extend(p.grad.clone() for p in parameters if p.grad is not None)
        return 1.0

    run.engine.step = keep_and_skip  # type: ignore[method-assign]
    options = {"engine": run.engine, "callbacks": None, "micro_batching": MicroBatching(size=2), "pad_id": 0}
    metrics = train_step([target], step=1, rehearsal=settings, **options)
    assert metrics["rehearsal_loss"] == pytest.approx(expected_loss.item(), abs=1e-6)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-4)


def test_weight_0_is_the_run_without_rehearsal_bit_for_bit(tmp_path: Path) -> None:
    """With dropout, whose random state a forward pass of the texts would change."""
    plain, weightless = TinyRun(tmp_path / "plain"), rehearsing(tmp_path / "0", texts=rehearsal(weight=0.0))
    plain.train()
    weightless.train()
    assert weightless.losses == plain.losses
    assert_equal_trainables(weightless, plain)


@GATES
def test_micro_batches_do_not_change_the_losses(tmp_path: Path, gate: dict | None) -> None:
    full = rehearsing(tmp_path / "full", method="lora", gate=gate)
    parts = rehearsing(tmp_path / "parts", method="lora", gate=gate, micro_batch_size=1)
    full.train()
    parts.train()
    assert parts.losses == pytest.approx(full.losses, abs=2e-5)
    assert parts.rehearsal_losses == pytest.approx(full.rehearsal_losses, abs=2e-5)
    assert len(full.rehearsal_losses) == 6 and min(full.rehearsal_losses) > 0


@GATES
def test_cached_hidden_states_give_the_losses_of_the_original_stream(tmp_path: Path, gate: dict | None) -> None:
    plain = rehearsing(tmp_path / "plain", method="lora", gate=gate)
    cached = rehearsing(tmp_path / "cached", method="lora", gate=gate, cached=True)
    plain.train()
    summary = cached.train()
    assert summary.hidden_state_cache
    assert cached.rehearsal_losses == pytest.approx(plain.rehearsal_losses, abs=1e-5)
    assert cached.losses == pytest.approx(plain.losses, abs=1e-5)


def test_a_resumed_run_is_bit_equal(tmp_path: Path) -> None:
    full, first = rehearsing(tmp_path / "full"), rehearsing(tmp_path / "parts")
    full.train()
    first.stop_after = 3
    with pytest.raises(KeyboardInterrupt):
        first.train()
    second = rehearsing(tmp_path / "parts")
    second.train()
    assert first.losses + second.losses == full.losses
    assert first.rehearsal_losses + second.rehearsal_losses == full.rehearsal_losses
    assert_equal_trainables(second, full)


def test_losses_per_micro_batch_leave_the_texts_their_own_divisor(tmp_path: Path) -> None:
    run = TinyRun(tmp_path, method="lora")
    texts = rehearsal()
    expected = plain_loss(run.model, texts.batch(1), loss="kl").item()
    groups = [tiny_examples()[:2], tiny_examples()[2:4]]
    options = {"engine": run.engine, "callbacks": None, "micro_batching": MicroBatching(size=2), "pad_id": 0}
    metrics = train_step(groups, step=1, groups_per_step=2, rehearsal=texts, **options)
    assert metrics["rehearsal_loss"] == pytest.approx(expected, abs=1e-6)


def test_rehearsal_keeps_the_model_closer_to_the_original(tmp_path: Path) -> None:
    plain = TinyRun(tmp_path / "plain", method="lora", num_epochs=8)
    held = rehearsing(tmp_path / "held", method="lora", num_epochs=8, texts=rehearsal(weight=5.0))
    plain.train()
    held.train()
    with torch.no_grad():
        distances = [plain_loss(run.model.eval(), TEXTS, loss="kl").item() for run in (held, plain)]
    assert distances[0] < 0.5 * distances[1]


def test_loramoe_rehearses_with_its_balancing_loss_on_the_target_alone(tmp_path: Path) -> None:
    plain = TinyRun(tmp_path / "plain", method="loramoe_without_dropout")
    run = rehearsing(tmp_path / "texts", method="loramoe_without_dropout")
    plain.train()
    run.train()
    assert run.auxiliary_losses[0] == plain.auxiliary_losses[0]
    assert len(run.rehearsal_losses) == 6


def test_the_texts_of_the_steps_are_random_rounds_of_all_texts() -> None:
    texts = rehearsal(batch_size=3)
    taken = [each.id for step in range(1, 6) for each in texts.batch(step)]
    rounds = [taken[start : start + 5] for start in (0, 5, 10)]
    assert all(sorted(each) == sorted(text.id for text in TEXTS) for each in rounds)
    assert len({tuple(each) for each in rounds}) == 3
    assert texts.batch(2) == rehearsal().batch(2)
