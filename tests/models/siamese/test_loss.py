"""The training loss: equal to the formulas written out, and additive over micro-batches."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import cross_entropy

from tests.models.siamese.reference import Reference
from tests.models.siamese.tiny import CASES, marked, padded, prompts, tiny_siamese

ANSWER = 3


def batch(*, side: str) -> tuple[list[list[int]], dict[str, torch.Tensor]]:
    """Three rows whose last tokens are the answer."""
    rows = prompts()
    ids, mask = padded(rows, side=side)
    query = marked(rows, [len(row) - ANSWER for row in rows], side=side)
    labels = ids.where((mask - query).bool(), -100)
    return rows, {"input_ids": ids, "attention_mask": mask, "labels": labels}


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize(("architecture", "method"), CASES)
def test_loss_and_gradients_equal_the_formulas(architecture: str, method: str, side: str) -> None:
    model = tiny_siamese(architecture, method).train()
    rows, inputs = batch(side=side)
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
    _, inputs = batch(side="right")
    items = int((inputs["labels"][:, 1:] != -100).sum())
    gradients, losses = [], []
    for pieces in ([slice(0, 3)], [slice(0, 1), slice(1, 3)]):
        model.zero_grad()
        loss = 0.0
        for piece in pieces:
            micro = {name: value[piece] for name, value in inputs.items()}
            share = model(**micro, num_items_in_batch=items).loss
            share.backward()
            loss += share.item()
        losses.append(loss)
        used = [p for n, p in model.named_parameters() if p.grad is not None]
        gradients.append([p.grad.clone() for p in used])
    assert losses[0] == pytest.approx(model(**inputs).loss.item(), abs=1e-6)
    assert losses[1] == pytest.approx(losses[0], abs=1e-5)
    torch.testing.assert_close(gradients[1], gradients[0], atol=1e-5, rtol=1e-5)


def test_plain_peft_learns_as_peft_does() -> None:
    """No gate, no second stream: the loss of PeftModel itself."""
    model = tiny_siamese("llama", "dora", gate=None)
    _, inputs = batch(side="right")
    torch.testing.assert_close(model(**inputs).loss, model.adapted(**inputs).loss)
    assert model(**inputs).gate_mean is None


def test_a_part_of_the_prompt_may_be_the_query() -> None:
    """Few-shot examples outside the query, by query_mask, with labels as without."""
    model = tiny_siamese()
    _, inputs = batch(side="right")
    query = torch.zeros(3, 12)
    query[:, 1:3] = 1
    labels = inputs.pop("labels")
    logits = model(**inputs, query_mask=query).logits
    expected = cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
    loss = model(**inputs, labels=labels, query_mask=query).loss
    torch.testing.assert_close(loss, expected, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(loss, model(**inputs, labels=labels).loss, atol=1e-3)


def test_gate_mean_is_over_answer_positions() -> None:
    model = tiny_siamese()
    seen = []
    model.gate.register_forward_hook(lambda gate, arguments, value: seen.append(value))
    _, inputs = batch(side="right")
    mean = model(**inputs).gate_mean
    assert seen[0].shape == (3 * ANSWER, 32)
    torch.testing.assert_close(mean, seen[0].mean())
