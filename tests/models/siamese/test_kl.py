"""The KL term against full logits and finite differences."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch.nn.functional import cross_entropy, kl_div

from imsm.models.siamese.kl import KLRegularizer, divergence
from imsm.models.siamese.model import SiameseForCausalLM
from tests.helpers.adapters import prompt_tuning
from tests.models.siamese.tiny import labelled_batch, tiny_siamese

STREAMS = ["tuned", "interwoven"]


def label_logits(model: SiameseForCausalLM, stream: str, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    """Return a stream's logits at the label positions, (N, V)."""
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
def test_loss_equals_its_equation(stream: str, mask_target: bool) -> None:
    model = tiny_siamese()
    model.stream = stream
    _, inputs = labelled_batch(side="right")
    gold = targets(inputs)
    original, trained = label_logits(model, "original", inputs), label_logits(model, stream, inputs)
    plain = cross_entropy(trained, gold)
    if mask_target:  # remove the target token explicitly
        rest = torch.ones_like(original, dtype=torch.bool).scatter(-1, gold[:, None], False)
        original, trained = (each[rest].view(len(gold), -1) for each in (original, trained))
    p_o, p = original.softmax(-1), trained.softmax(-1)
    kl = kl_div(p.log(), p_o, reduction="sum") / len(gold)
    assert kl > 0.01
    model.kl_regularizer = KLRegularizer(weight=0.7, mask_target=mask_target)
    output = model.train()(**inputs)
    torch.testing.assert_close(output.divergence, kl, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(output.loss, plain + 0.7 * kl, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("mask_target", [False, True])
@pytest.mark.parametrize("stream", STREAMS)
def test_gradients_equal_finite_differences(stream: str, mask_target: bool) -> None:
    model = tiny_siamese().double().train()
    model.stream = stream
    model.kl_regularizer = KLRegularizer(weight=2.0, mask_target=mask_target)
    _, inputs = labelled_batch(side="right")
    model(**inputs).loss.backward()
    parts = [p for p in model.parameters() if p.requires_grad and p.grad is not None]
    assert parts
    generator = torch.Generator().manual_seed(4)
    directions = [torch.randn(p.shape, generator=generator, dtype=torch.float64) for p in parts]
    along = sum((p.grad * direction).sum() for p, direction in zip(parts, directions, strict=True))
    step, losses = 1e-3, []  # the loss itself is taken in float32
    with torch.no_grad():
        for moved in (-step, 2 * step):
            for part, direction in zip(parts, directions, strict=True):
                part.add_(moved * direction)
            losses.append(model(**inputs).loss.double())
    ((before, after),) = pairwise(losses)
    torch.testing.assert_close((after - before) / (2 * step), along, rtol=2e-2, atol=1e-2)


def test_divergence_of_equal_distributions_is_zero() -> None:
    logits = 10 * torch.randn(5, 97, generator=torch.Generator().manual_seed(1))
    gold = logits.argmax(dim=-1)
    for masked in (None, gold):
        moved = logits.clone().requires_grad_()
        kl = divergence(logits, moved, masked_tokens=masked)
        kl.backward()
        assert kl.abs() < 1e-4
        assert moved.grad.isfinite().all() and moved.grad.abs().max() < 1e-5
    shifted = logits.scatter_add(-1, gold[:, None], torch.full((5, 1), 3.0))
    assert divergence(logits, shifted) > 0.1
    assert divergence(logits, shifted, masked_tokens=gold).abs() < 1e-4


@pytest.mark.parametrize("stream", STREAMS)
def test_loss_is_unchanged_without_regularizer_and_in_eval_mode(stream: str) -> None:
    model = tiny_siamese()
    model.stream = stream
    _, inputs = labelled_batch(side="right")
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
    _, inputs = labelled_batch(side="right")
    count = len(targets(inputs))
    found = []
    for chunks in ([slice(0, 3)], [slice(0, 1), slice(1, 3)]):
        outputs = [model(**{k: v[chunk] for k, v in inputs.items()}, num_items_in_batch=count) for chunk in chunks]
        found.append(torch.stack([sum(o.loss for o in outputs), sum(o.divergence for o in outputs)]))
    torch.testing.assert_close(*found, rtol=1e-5, atol=1e-5)


def test_prompt_tuning_can_be_regularized() -> None:
    model = tiny_siamese(method=prompt_tuning(num_virtual_tokens=4), gate=None)
    model.kl_regularizer = KLRegularizer(weight=1.0)
    _, inputs = labelled_batch(side="right")
    original, trained = label_logits(model, "original", inputs), label_logits(model, "tuned", inputs)
    output = model.train()(**inputs)
    kl = kl_div(trained.log_softmax(-1), original.softmax(-1), reduction="sum") / len(original)
    torch.testing.assert_close(output.divergence, kl, rtol=1e-4, atol=1e-5)
