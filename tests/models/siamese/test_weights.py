"""Invariants 1 and 2: one copy of the weights, adapter and gate alone learn, off means original."""

from __future__ import annotations

import pytest
import torch
from peft import PeftModel

from imsm.models.adapters.base import attach_adapter
from imsm.models.siamese.config import SiameseConfig
from imsm.models.siamese.gate import build_gate
from imsm.models.siamese.model import SiameseForCausalLM
from tests.models.siamese.tiny import (
    ADAPTERS,
    CASES,
    QUERY_GATE,
    padded,
    perturb,
    prompts,
    tiny_backbone,
    tiny_siamese,
)


def train(model: SiameseForCausalLM, *, steps: int = 2) -> None:
    """Some real optimizer steps, in training mode."""
    ids, mask = padded(prompts(), side="right")
    labels = ids.where(mask.bool() & (torch.arange(ids.shape[1]) > 3), -100)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    model.train()
    for _ in range(steps):
        model(ids, attention_mask=mask, labels=labels).loss.backward()
        optimizer.step()


@pytest.mark.parametrize(("architecture", "method"), CASES)
def test_one_copy_of_the_backbone(architecture: str, method: str) -> None:
    plain = dict(tiny_backbone(architecture).named_parameters())
    model = tiny_siamese(architecture, method)
    frozen = [p for p in model.parameters() if not p.requires_grad]
    backbone = [p for p in frozen if p.numel() > 1]  # AdaLoRA keeps one number a layer, frozen
    assert sum(p.numel() for p in backbone) == sum(p.numel() for p in plain.values())
    pointers = [p.data_ptr() for p in model.parameters()]
    assert len(set(pointers)) == len(pointers)


@pytest.mark.parametrize(("architecture", "method"), CASES)
def test_adapter_and_gate_alone_learn(architecture: str, method: str) -> None:
    model = tiny_siamese(architecture, method)
    peft = attach_adapter(ADAPTERS[method](), tiny_backbone(architecture))
    adapter = {f"adapted.{n}" for n, p in peft.named_parameters() if p.requires_grad}
    names = {n for n, p in model.named_parameters() if p.requires_grad}
    assert adapter and names == adapter | {"gate.down.weight", "gate.up.weight"}

    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    train(model)
    for name, parameter in model.named_parameters():
        assert (parameter.grad is not None) == (name in names), name
        assert torch.equal(parameter, before[name]) == (name not in names), name


@pytest.mark.parametrize("trained", [False, True], ids=["fresh", "trained, in training mode"])
@pytest.mark.parametrize(("architecture", "method"), CASES)
def test_original_stream_is_the_untouched_model(architecture: str, method: str, trained: bool) -> None:
    plain = tiny_backbone(architecture)
    model = tiny_siamese(architecture, method)
    if trained:
        train(model)
    model.stream = "original"
    ids, mask = padded(prompts(), side="left")
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    whole = plain(ids, attention_mask=mask, position_ids=positions).logits
    assert torch.equal(model(ids, attention_mask=mask).logits, whole)
    assert torch.equal(model(ids[:1]).logits, plain(ids[:1]).logits)
    settings = {"attention_mask": mask, "max_new_tokens": 6, "do_sample": False}
    assert torch.equal(model.generate(ids, **settings), plain.generate(ids, **settings))


@pytest.mark.parametrize(("architecture", "method"), CASES)
def test_construction_leaves_the_adapter_as_it_is(architecture: str, method: str) -> None:
    peft: PeftModel = attach_adapter(ADAPTERS[method](), tiny_backbone(architecture)).eval()
    perturb(peft)
    gate = build_gate(hidden_size=32, **QUERY_GATE)
    parameters = {**dict(peft.named_parameters()), **dict(gate.named_parameters())}
    before = {n: p.detach().clone() for n, p in parameters.items()}
    ids = torch.tensor(prompts()[:1])
    own = peft(ids).logits
    model = SiameseForCausalLM(SiameseConfig(text_config=peft.config), peft, gate).eval()
    assert all(torch.equal(p, before[n]) for n, p in parameters.items())
    model.stream = "tuned"
    assert torch.equal(model(ids).logits, own)
    model.stream = "original"
    assert not torch.allclose(model(ids).logits, own, atol=1e-2)


def test_switching_restores_what_it_found() -> None:
    model = tiny_siamese()
    ids = torch.tensor(prompts()[:1])
    original = tiny_backbone("llama")(ids).logits
    model.stream = "tuned"
    trainable = [n for n, p in model.named_parameters() if p.requires_grad]
    with model.adapted.disable_adapter():
        assert torch.equal(model(ids).logits, original)
        with model.streams.adapter_disabled():
            pass
        assert torch.equal(model(ids).logits, original)  # PEFT's own switch is respected
    with pytest.raises(RuntimeError), model.streams.adapter_disabled():
        raise RuntimeError
    assert not torch.allclose(model(ids).logits, original, atol=1e-2)
    assert trainable == [n for n, p in model.named_parameters() if p.requires_grad]


def test_streams_that_a_model_has() -> None:
    assert tiny_siamese().available_streams() == ("original", "tuned", "interwoven")
    peft = tiny_siamese(gate=None)
    assert peft.available_streams() == ("original", "tuned")
    with pytest.raises(ValueError, match="original, tuned"):
        peft.stream = "interwoven"
