"""KL to the original in the training loss, against whole logits and finite differences."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch.nn.functional import cross_entropy, kl_div

from imsm.models.siamese.kl import KLRegularizer, divergence
from imsm.models.siamese.model import SiameseForCausalLM
from tests.models.siamese.test_loss import batch
from tests.models.siamese.tiny import tiny_siamese

STREAMS = ["tuned", "interwoven"]


def answers(model: SiameseForCausalLM, stream: str, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    """The whole logits of a stream, cut down to the answers' positions, (N, V)."""
    labels, mask = inputs["labels"], inputs["attention_mask"]
    before = model.stream
    model.stream = stream
    query = {"query_mask": mask * (labels == -100)} if stream == "interwoven" else {}
    with torch.no_grad():
        logits = model(inputs["input_ids"], attention_mask=mask, **query).logits
    model.stream = before
    return logits[:, :-1][labels[:, 1:] != -100]


def targets(inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    labels = inputs["labels"][:, 1:]
    return labels[labels != -100]


@pytest.mark.parametrize("mask_target", [False, True])
@pytest.mark.parametrize("stream", STREAMS)
def test_loss_equals_the_formula(stream: str, mask_target: bool) -> None:
    model = tiny_siamese()
    model.stream = stream
    _, inputs = batch(side="right")
    gold = targets(inputs)
    one, other = answers(model, "original", inputs), answers(model, stream, inputs)
    plain = cross_entropy(other, gold)
    if mask_target:  # without the right token, by hand
        rest = torch.ones_like(one, dtype=torch.bool).scatter(-1, gold[:, None], False)
        one, other = (each[rest].view(len(gold), -1) for each in (one, other))
    p_o, p = one.softmax(-1), other.softmax(-1)
    apart = kl_div(p.log(), p_o, reduction="sum") / len(gold)
    assert apart > 0.01
    model.kl_regularizer = KLRegularizer(weight=0.7, mask_target=mask_target)
    output = model.train()(**inputs)
    torch.testing.assert_close(output.divergence, apart, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(output.loss, plain + 0.7 * apart, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("mask_target", [False, True])
@pytest.mark.parametrize("stream", STREAMS)
def test_gradients_equal_finite_differences(stream: str, mask_target: bool) -> None:
    model = tiny_siamese().double().train()
    model.stream = stream
    model.kl_regularizer = KLRegularizer(weight=2.0, mask_target=mask_target)
    _, inputs = batch(side="right")
    model(**inputs).loss.backward()
    parts = [p for p in model.parameters() if p.requires_grad and p.grad is not None]
    assert parts
    generator = torch.Generator().manual_seed(4)
    ways = [torch.randn(p.shape, generator=generator, dtype=torch.float64) for p in parts]
    along = sum((p.grad * way).sum() for p, way in zip(parts, ways, strict=True))
    step, losses = 1e-3, []  # the loss itself is taken in float32
    with torch.no_grad():
        for moved in (-step, 2 * step):
            for part, way in zip(parts, ways, strict=True):
                part.add_(moved * way)
            losses.append(model(**inputs).loss.double())
    ((before, after),) = pairwise(losses)
    torch.testing.assert_close((after - before) / (2 * step), along, rtol=2e-2, atol=1e-2)


def test_a_distribution_is_nothing_away_from_itself() -> None:
    logits = 10 * torch.randn(5, 97, generator=torch.Generator().manual_seed(1))
    gold = logits.argmax(dim=-1)
    for without in (None, gold):
        moved = logits.clone().requires_grad_()
        apart = divergence(logits, moved, without=without)
        apart.backward()
        assert apart.abs() < 1e-4
        assert moved.grad.isfinite().all() and moved.grad.abs().max() < 1e-5
    shifted = logits.scatter_add(-1, gold[:, None], torch.full((5, 1), 3.0))
    assert divergence(logits, shifted) > 0.1
    assert divergence(logits, shifted, without=gold).abs() < 1e-4


@pytest.mark.parametrize("stream", STREAMS)
def test_without_a_weight_and_outside_training_the_loss_is_what_it_was(stream: str) -> None:
    model = tiny_siamese()
    model.stream = stream
    _, inputs = batch(side="right")
    plain = model.train()(**inputs)
    assert plain.divergence is None
    model.kl_regularizer = KLRegularizer(weight=0.5)
    assert model(**inputs).loss > plain.loss
    validated = model.eval()(**inputs)
    assert validated.divergence is None
    assert torch.equal(validated.loss, plain.loss)


@pytest.mark.parametrize("stream", STREAMS)
def test_micro_batches_add_up(stream: str) -> None:
    model = tiny_siamese().train()
    model.stream = stream
    model.kl_regularizer = KLRegularizer(weight=0.5)
    _, inputs = batch(side="right")
    count = len(targets(inputs))
    found = []
    for pieces in ([slice(0, 3)], [slice(0, 1), slice(1, 3)]):
        outputs = [model(**{k: v[piece] for k, v in inputs.items()}, num_items_in_batch=count) for piece in pieces]
        found.append(torch.stack([sum(o.loss for o in outputs), sum(o.divergence for o in outputs)]))
    torch.testing.assert_close(*found, rtol=1e-5, atol=1e-5)


def test_a_learned_prompt_is_held_to_the_original_too() -> None:
    from tests.helpers.adapters import prompt_tuning

    model = tiny_siamese(method=prompt_tuning(num_virtual_tokens=4), gate=None)
    model.kl_regularizer = KLRegularizer(weight=1.0)
    _, inputs = batch(side="right")
    one, other = answers(model, "original", inputs), answers(model, "tuned", inputs)
    output = model.train()(**inputs)
    apart = kl_div(other.log_softmax(-1), one.softmax(-1), reduction="sum") / len(one)
    torch.testing.assert_close(output.divergence, apart, rtol=1e-4, atol=1e-5)
