"""One copy of the weights, only adapter and gate learn, and the loss equals its equation."""

from __future__ import annotations

import pytest
import torch
from peft import PeftModel
from torch.nn.functional import cross_entropy

from imsm.models.adapters.base import attach_adapter
from imsm.models.siamese.config import SiameseConfig
from imsm.models.siamese.gate import build_gate
from imsm.models.siamese.model import SiameseForCausalLM
from tests.models.siamese.reference import Reference
from tests.models.siamese.tiny import (
    ADAPTERS,
    ANSWER,
    CASES,
    QUERY_GATE,
    labelled_batch,
    padded,
    perturb,
    prompts,
    tiny_backbone,
    tiny_siamese,
)


def train(model: SiameseForCausalLM, *, steps: int = 2) -> None:
    """Run optimizer steps in training mode."""
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
    backbone = [p for p in frozen if p.numel() > 1]  # AdaLoRA has one frozen number per layer
    assert sum(p.numel() for p in backbone) == sum(p.numel() for p in plain.values())
    pointers = [p.data_ptr() for p in model.parameters()]
    assert len(set(pointers)) == len(pointers)


@pytest.mark.parametrize(("architecture", "method"), CASES)
def test_only_adapter_and_gate_learn(architecture: str, method: str) -> None:
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
def test_original_stream_equals_the_unmodified_model(architecture: str, method: str, trained: bool) -> None:
    plain = tiny_backbone(architecture)
    model = tiny_siamese(architecture, method)
    if trained:
        train(model)
    model.stream = "original"
    ids, mask = padded(prompts(), side="left")
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    expected = plain(ids, attention_mask=mask, position_ids=positions).logits
    assert torch.equal(model(ids, attention_mask=mask).logits, expected)
    assert torch.equal(model(ids[:1]).logits, plain(ids[:1]).logits)
    settings = {"attention_mask": mask, "max_new_tokens": 6, "do_sample": False}
    assert torch.equal(model.generate(ids, **settings), plain.generate(ids, **settings))


@pytest.mark.parametrize(("architecture", "method"), CASES)
def test_construction_keeps_the_adapter(architecture: str, method: str) -> None:
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


def test_disabling_the_adapter_restores_its_state() -> None:
    model = tiny_siamese()
    ids = torch.tensor(prompts()[:1])
    original = tiny_backbone("llama")(ids).logits
    model.stream = "tuned"
    trainable = [n for n, p in model.named_parameters() if p.requires_grad]
    with model.adapted.disable_adapter():
        assert torch.equal(model(ids).logits, original)
        with model.streams.adapter_disabled():
            pass
        assert torch.equal(model(ids).logits, original)  # PEFT's own context manager still applies
    with pytest.raises(RuntimeError), model.streams.adapter_disabled():
        raise RuntimeError
    assert not torch.allclose(model(ids).logits, original, atol=1e-2)
    assert trainable == [n for n, p in model.named_parameters() if p.requires_grad]


def test_available_streams() -> None:
    assert tiny_siamese().available_streams() == ("original", "tuned", "interwoven")
    peft = tiny_siamese(gate=None)
    assert peft.available_streams() == ("original", "tuned")
    with pytest.raises(ValueError, match="original, tuned"):
        peft.stream = "interwoven"


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize(("architecture", "method"), CASES)
def test_loss_and_gradients_equal_the_equations(architecture: str, method: str, side: str) -> None:
    model = tiny_siamese(architecture, method).train()
    rows, inputs = labelled_batch(side=side)
    output = model(**inputs)
    reference = Reference(model, architecture, method)
    logits = torch.cat([reference.logits(row, len(row) - ANSWER)[:-1] for row in rows])
    expected = cross_entropy(logits, torch.tensor([t for row in rows for t in row[-ANSWER:]]))
    torch.testing.assert_close(output.loss, expected, atol=1e-5, rtol=1e-5)

    output.loss.backward()
    gate = model.gate.down.weight.grad.clone()
    model.gate.zero_grad()
    expected.backward()
    torch.testing.assert_close(model.gate.down.weight.grad, gate, atol=1e-4, rtol=1e-4)
    tuned = dict(reference.tuned.named_parameters())
    for name, parameter in model.adapted.named_parameters():
        if parameter.requires_grad:
            torch.testing.assert_close(parameter.grad, tuned[name].grad, atol=1e-3, rtol=1e-3, msg=name)


@pytest.mark.parametrize("stream", ["tuned", "interwoven"])
def test_micro_batches_add_up_to_the_batch(stream: str) -> None:
    model = tiny_siamese("llama", "lora")
    model.stream = stream
    _, inputs = labelled_batch(side="right")
    items = int((inputs["labels"][:, 1:] != -100).sum())
    gradients, losses = [], []
    for chunks in ([slice(0, 3)], [slice(0, 1), slice(1, 3)]):
        model.zero_grad()
        loss = 0.0
        for chunk in chunks:
            micro = {name: value[chunk] for name, value in inputs.items()}
            part = model(**micro, num_items_in_batch=items).loss
            part.backward()
            loss += part.item()
        losses.append(loss)
        used = [p for n, p in model.named_parameters() if p.grad is not None]
        gradients.append([p.grad.clone() for p in used])
    assert losses[0] == pytest.approx(model(**inputs).loss.item(), abs=1e-6)
    assert losses[1] == pytest.approx(losses[0], abs=1e-5)
    torch.testing.assert_close(gradients[1], gradients[0], atol=1e-5, rtol=1e-5)


def test_plain_peft_has_the_loss_of_peft() -> None:
    """Without a gate only one stream runs."""
    model = tiny_siamese("llama", "dora", gate=None)
    _, inputs = labelled_batch(side="right")
    torch.testing.assert_close(model(**inputs).loss, model.adapted(**inputs).loss)
    assert model(**inputs).gate_mean is None


def test_query_mask_may_select_a_part_of_the_prompt() -> None:
    """As for few-shot examples outside the query; with labels and without."""
    model = tiny_siamese()
    _, inputs = labelled_batch(side="right")
    query = torch.zeros(3, 12)
    query[:, 1:3] = 1
    labels = inputs.pop("labels")
    logits = model(**inputs, query_mask=query).logits
    expected = cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
    loss = model(**inputs, labels=labels, query_mask=query).loss
    torch.testing.assert_close(loss, expected, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(loss, model(**inputs, labels=labels).loss, atol=1e-3)


def test_gate_mean_covers_label_positions() -> None:
    model = tiny_siamese()
    gates = []
    model.gate.register_forward_hook(lambda gate, arguments, value: gates.append(value))
    _, inputs = labelled_batch(side="right")
    mean = model(**inputs).gate_mean
    assert gates[0].shape == (3 * ANSWER, 32)
    torch.testing.assert_close(mean, gates[0].mean())
