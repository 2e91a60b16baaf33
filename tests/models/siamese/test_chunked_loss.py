"""The chunked loss equals the loss over all logits, in value and gradient."""

from __future__ import annotations

import pytest
import torch

from imsm.data.batching import collate_training
from imsm.models.siamese import chunked_loss
from imsm.models.siamese.chunked_loss import chunked_loss_sum, logit_chunk_size
from imsm.models.siamese.kl import KLRegularizer
from imsm.models.siamese.model import SiameseForCausalLM, SiameseOutput
from tests.models.siamese.tiny import QUERY_GATE, tiny_siamese
from tests.training.tiny_run import tiny_examples


def train_step(model: SiameseForCausalLM) -> tuple[SiameseOutput, list[torch.Tensor]]:
    model.zero_grad()
    output = model(**collate_training(tiny_examples(), pad_id=0))
    output.loss.backward()
    return output, [p.grad.clone() for p in model.parameters() if p.requires_grad]


@pytest.mark.parametrize("kl", [None, KLRegularizer(weight=0.5), KLRegularizer(weight=0.5, mask_target=True)])
@pytest.mark.parametrize("gate", [QUERY_GATE, None], ids=["imsm", "peft"])
@pytest.mark.parametrize("architecture", ["llama", "gemma3"])
@pytest.mark.parametrize("chunk_size", [1, 7])
def test_chunked_loss_and_gradients_equal_the_full_ones(
    architecture: str, gate: dict | None, kl: KLRegularizer | None, chunk_size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_siamese(architecture, gate=gate).train()
    model.kl_regularizer = kl
    expected, gradients = train_step(model)
    monkeypatch.setattr(chunked_loss, "MAX_LOGITS", 97 * chunk_size)
    assert logit_chunk_size(model.backbone) == chunk_size
    found, others = train_step(model)
    torch.testing.assert_close(found.loss, expected.loss, atol=1e-6, rtol=1e-6)
    for one, other in zip(others, gradients, strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-5)
    assert (found.divergence is None) is (kl is None)
    if kl is not None:
        torch.testing.assert_close(found.divergence, expected.divergence, atol=1e-6, rtol=1e-5)
    model.eval()
    with torch.no_grad():
        again = model(**collate_training(tiny_examples(), pad_id=0)).loss
    assert again.isfinite() and not again.requires_grad


def test_a_chunk_has_at_most_max_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunked_loss, "MAX_LOGITS", 97 * 5)
    model = tiny_siamese().train()
    shapes: list[int] = []
    model.backbone.lm_head.register_forward_hook(lambda *given: shapes.append(given[2].shape[1]))
    train_step(model)
    num_answer_tokens = sum(len(example.answer_ids) for example in tiny_examples())
    assert sum(shapes) == num_answer_tokens and max(shapes) == 5


def test_chunked_sum_backpropagates_the_outer_gradient() -> None:
    hidden = torch.randn(7, 3, requires_grad=True)
    weights = torch.arange(7.0)[:, None]
    total = chunked_loss_sum(lambda rows, chunk: (rows**2 * weights[chunk]).sum(), hidden, chunk_size=3)
    (3 * total).backward()
    torch.testing.assert_close(hidden.grad, 6 * weights * hidden.detach())


def test_head_sharded_by_zero3_is_not_chunked() -> None:
    model = tiny_siamese()
    model.backbone.lm_head.weight.ds_id = 3  # set by DeepSpeed's ZeRO stage 3
    assert logit_chunk_size(model.backbone) is None
