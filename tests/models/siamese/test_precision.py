"""A bfloat16 backbone with adapter and gate in float32."""

from __future__ import annotations

import pytest
import torch

from tests.models.siamese.tiny import CASES, decoded, padded, prompts, tiny_backbone, tiny_siamese

BF16 = torch.bfloat16


@pytest.mark.parametrize(("architecture", "method"), CASES)
def test_bfloat16_backbone(architecture: str, method: str) -> None:
    model = tiny_siamese(architecture, method, dtype=BF16)
    exact = tiny_siamese(architecture, method)
    trainable = {n: p for n, p in model.named_parameters() if p.requires_grad}
    assert trainable.keys() == {n for n, p in exact.named_parameters() if p.requires_grad}
    assert {p.dtype for p in trainable.values()} == {torch.float32}
    assert {p.dtype for p in model.parameters() if not p.requires_grad and p.ndim > 1} == {BF16}
    ids, mask = padded(prompts(), side="left")
    labels = ids.where(mask.bool() & (torch.arange(ids.shape[1]) > 8), -100)

    logits = model(ids, attention_mask=mask, query_mask=mask).logits
    assert logits.dtype == BF16 and logits[mask.bool()].isfinite().all()
    exact.adapted.load_state_dict(model.adapted.state_dict())  # the same rounded backbone
    expected = exact(ids, attention_mask=mask, query_mask=mask).logits
    error = (logits - expected)[mask.bool()].abs().mean() / expected[mask.bool()].std()
    assert error < 0.1

    model.train()
    loss = model(ids, attention_mask=mask, labels=labels).loss
    assert loss.dtype == torch.float32
    loss.backward()
    trainable = list(trainable.values())
    assert all(p.grad.dtype == torch.float32 and p.grad.isfinite().all() for p in trainable)
    before = [p.detach().clone() for p in trainable]
    torch.optim.AdamW(trainable, lr=1e-2).step()
    assert all(not torch.equal(p, old) for p, old in zip(trainable, before, strict=True))
    assert len(decoded(model.eval(), prompts()[0])) > 0


@pytest.mark.parametrize(("architecture", "method"), CASES)
def test_streams_are_exact_in_bfloat16(architecture: str, method: str) -> None:
    """A disabled adapter and a gate of 1 give the original model, a gate of 0 the tuned stream."""
    model = tiny_siamese(architecture, method, dtype=BF16)
    plain = tiny_backbone(architecture, dtype=BF16)
    ids = torch.tensor(prompts()[:1])
    mask = {"query_mask": torch.ones_like(ids)}
    model.stream = "original"
    assert torch.equal(model(ids).logits, plain(ids).logits)
    for weight, stream in ((1.0, "original"), (0.0, "tuned")):
        model.stream = stream
        expected = model(ids).logits
        model.stream = "interwoven"
        handle = model.gate.register_forward_hook(lambda gate, _, value, weight=weight: torch.full_like(value, weight))
        assert torch.equal(model(ids, **mask).logits, expected)
        handle.remove()
