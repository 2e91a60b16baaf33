"""Token weights: worked examples, and the model's training loss."""

from __future__ import annotations

import math
from typing import get_args

import pytest
import torch
from torch.nn.functional import cross_entropy

from imsm.config.schema import TrainerConfig
from imsm.models.siamese import model as model_module
from imsm.models.siamese.kl import KLRegularizer
from imsm.models.siamese.token_weights import TOKEN_WEIGHTS, weighted_sum
from tests.models.siamese.test_kl import STREAMS, label_logits, targets
from tests.models.siamese.tiny import labelled_batch, tiny_siamese


def weights(name: str, probabilities: list[float], target: int) -> float:
    logits = torch.tensor([probabilities]).log() + 3  # a softmax ignores the offset
    losses = cross_entropy(logits, torch.tensor([target]), reduction="none")
    return TOKEN_WEIGHTS[name](logits, losses).item()


def test_the_options_of_the_configuration_are_the_weights() -> None:
    assert get_args(TrainerConfig.model_fields["token_weight"].annotation) == ("none", *TOKEN_WEIGHTS)


def test_dft_is_the_probability_of_the_target() -> None:
    assert weights("dft", [0.5, 0.25, 0.25], 1) == pytest.approx(0.25)


def test_eaft_is_the_entropy_divided_by_three() -> None:
    """Of the probabilities 1/2, 1/4, 1/4: (1/2 ln 2 + 2 * 1/4 ln 4) / 3 = 1.5 ln 2 / 3, whatever the target is."""
    assert weights("eaft", [0.5, 0.25, 0.25], 0) == pytest.approx(0.5 * math.log(2))
    assert weights("eaft", [0.5, 0.25, 0.25], 2) == pytest.approx(0.5 * math.log(2))


def test_eaft_reads_the_twenty_most_likely_tokens() -> None:
    """Twenty tokens of 0.04 and twenty of 0.01: renormalized, the first have 1/20 each."""
    assert weights("eaft", [0.04] * 20 + [0.01] * 20, 30) == pytest.approx(math.log(20) / 3, rel=1e-5)


def test_infosft_is_largest_for_medium_probabilities() -> None:
    """At p = 1/2 the logit is 0, so that the weight is p; at p = 0.93 and above it is 0."""
    assert weights("infosft", [0.5, 0.25, 0.25], 0) == pytest.approx(0.5)
    expected = 0.25 * (1 + math.log(3) / math.log(0.93 / 0.07))
    assert weights("infosft", [0.5, 0.25, 0.25], 1) == pytest.approx(expected) == pytest.approx(0.3562, abs=1e-4)
    assert weights("infosft", [0.93, 0.07], 0) == pytest.approx(0, abs=1e-6)
    assert weights("infosft", [0.97, 0.03], 0) == 0


def test_extreme_probabilities_have_finite_weights() -> None:
    logits = torch.tensor([[200.0, -200.0], [200.0, -200.0]])
    losses = cross_entropy(logits, torch.tensor([0, 1]), reduction="none")
    for weight in TOKEN_WEIGHTS.values():
        assert weight(logits, losses).tolist() == [0, 0] or weight(logits, losses).isfinite().all()


@pytest.mark.parametrize("name", TOKEN_WEIGHTS)
def test_weights_carry_no_gradient(name: str) -> None:
    logits = torch.randn(4, 30, generator=torch.Generator().manual_seed(1)).requires_grad_()
    gold = torch.tensor([3, 0, 29, 7])
    losses = cross_entropy(logits, gold, reduction="none")
    factors = TOKEN_WEIGHTS[name](logits.detach(), losses.detach())
    (found,) = torch.autograd.grad(weighted_sum(TOKEN_WEIGHTS[name], logits, losses), logits, retain_graph=True)
    one_hot = torch.nn.functional.one_hot(gold, 30)
    torch.testing.assert_close(found, factors[:, None] * (logits.detach().softmax(-1) - one_hot))


@pytest.mark.parametrize("name", TOKEN_WEIGHTS)
@pytest.mark.parametrize("stream", STREAMS)
def test_the_training_loss_is_weighted_and_the_validation_loss_is_not(stream: str, name: str) -> None:
    model = tiny_siamese()
    model.stream = stream
    _, inputs = labelled_batch(side="right")
    plain = model.train()(**inputs).loss
    model.token_weight = TOKEN_WEIGHTS[name]
    logits, gold = label_logits(model, stream, inputs), targets(inputs)
    losses = cross_entropy(logits, gold, reduction="none")
    expected = (TOKEN_WEIGHTS[name](logits, losses) * losses).mean()
    torch.testing.assert_close(model(**inputs).loss, expected, rtol=1e-4, atol=1e-5)
    assert torch.equal(model.eval()(**inputs).loss, plain)
    for objective in ("ce", "kl"):
        found = model.train()(**inputs, objective=objective).loss
        model.token_weight = None
        assert torch.equal(found, model(**inputs, objective=objective).loss)
        model.token_weight = TOKEN_WEIGHTS[name]


@pytest.mark.parametrize("name", TOKEN_WEIGHTS)
def test_chunks_and_micro_batches_add_up(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With KL as well: DFT plus KL is ASFT."""
    model = tiny_siamese().train()
    model.token_weight, model.kl_regularizer = TOKEN_WEIGHTS[name], KLRegularizer(weight=0.1)
    _, inputs = labelled_batch(side="right")
    count = len(targets(inputs))

    def loss_and_gradient(*parts: slice) -> list[torch.Tensor]:
        model.zero_grad()
        loss = sum(model(**{k: v[p] for k, v in inputs.items()}, num_items_in_batch=count).loss for p in parts)
        loss.backward()
        return [loss.detach(), *(p.grad for p in model.parameters() if p.grad is not None)]

    whole = loss_and_gradient(slice(0, 3))
    split = loss_and_gradient(slice(0, 1), slice(1, 3))
    monkeypatch.setattr(model_module, "logit_chunk_size", lambda _: 2)
    chunked = loss_and_gradient(slice(0, 3))
    torch.testing.assert_close(split, whole, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(chunked, whole, rtol=1e-4, atol=1e-5)
