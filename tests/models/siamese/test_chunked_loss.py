"""The loss in pieces: that of all logits at once, its gradients too, in less memory."""

from __future__ import annotations

import pytest
import torch

from imsm.data.batching import collate_training
from imsm.models.siamese import chunked_loss as long_answers
from imsm.models.siamese.chunked_loss import chunked_loss_sum, logit_chunk_size
from imsm.models.siamese.kl import KLRegularizer
from imsm.models.siamese.model import SiameseForCausalLM, SiameseOutput
from tests.models.siamese.tiny import QUERY_GATE, tiny_siamese
from tests.training.tiny_run import tiny_examples


def learned(model: SiameseForCausalLM) -> tuple[SiameseOutput, list[torch.Tensor]]:
    model.zero_grad()
    output = model(**collate_training(tiny_examples(), pad_id=0))
    output.loss.backward()
    return output, [p.grad.clone() for p in model.parameters() if p.requires_grad]


@pytest.mark.parametrize("kl", [None, KLRegularizer(weight=0.5), KLRegularizer(weight=0.5, mask_target=True)])
@pytest.mark.parametrize("gate", [QUERY_GATE, None], ids=["imsm", "peft"])
@pytest.mark.parametrize("architecture", ["llama", "gemma3"])
@pytest.mark.parametrize("positions", [1, 7])
def test_loss_and_gradients_are_those_of_all_at_once(
    architecture: str, gate: dict | None, kl: KLRegularizer | None, positions: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_siamese(architecture, gate=gate).train()
    model.kl_regularizer = kl
    expected, gradients = learned(model)
    monkeypatch.setattr(long_answers, "LARGEST", 97 * positions)
    assert logit_chunk_size(model.backbone) == positions
    found, others = learned(model)
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


def test_no_more_logits_than_allowed_are_there_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(long_answers, "LARGEST", 97 * 5)
    model = tiny_siamese().train()
    shapes: list[int] = []
    model.backbone.lm_head.register_forward_hook(lambda *given: shapes.append(given[2].shape[1]))
    learned(model)
    answers = sum(len(item.answer_ids) for item in tiny_examples())
    assert sum(shapes) == answers and max(shapes) == 5


def test_a_sum_in_pieces_is_differentiated_once() -> None:
    memory = torch.randn(7, 3, requires_grad=True)
    weights = torch.arange(7.0)[:, None]
    total = chunked_loss_sum(lambda rows, piece: (rows**2 * weights[piece]).sum(), memory, chunk_size=3)
    (3 * total).backward()
    torch.testing.assert_close(memory.grad, 6 * weights * memory.detach())


def test_a_head_that_is_shared_out_is_read_once() -> None:
    model = tiny_siamese()
    model.backbone.lm_head.weight.ds_id = 3  # as DeepSpeed's stage 3 marks it
    assert logit_chunk_size(model.backbone) is None
