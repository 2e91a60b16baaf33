"""The streams: dual batches, gradients, padding and causality."""

from __future__ import annotations

import pytest
import torch
from transformers import DynamicCache

from tests.models.siamese.reference import Reference
from tests.models.siamese.tiny import CASES, marked, padded, prompts, tiny_siamese

CLOSE = {"atol": 1e-5, "rtol": 1e-5}


@pytest.mark.parametrize(("architecture", "method"), CASES)
@torch.no_grad()
def test_dual_batch_equals_two_passes(architecture: str, method: str) -> None:
    model = tiny_siamese(architecture, method)
    ids, mask = padded(prompts(), side="left")
    chunks = [slice(0, 9), slice(9, 10), slice(10, 11), slice(11, 12)]
    cache = model.new_cache()
    caches = {stream: DynamicCache(config=model.config.text_config) for stream in ("original", "tuned")}
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    for chunk in chunks:
        inputs = {
            "input_ids": ids[:, chunk],
            "attention_mask": mask[:, : chunk.stop],
            "position_ids": positions[:, chunk],
        }
        original, tuned = model.streams.both_hidden_states(inputs, cache=cache)
        for stream, hidden in (("original", original), ("tuned", tuned)):
            alone = model.streams.hidden_states(inputs, stream=stream, cache=caches[stream])
            real = mask[:, chunk].bool()
            torch.testing.assert_close(hidden[real], alone[real], **CLOSE)
        assert not torch.allclose(original, tuned, atol=1e-2)


@pytest.mark.parametrize(("architecture", "method"), CASES)
def test_gradient_checkpointing_changes_no_gradient(architecture: str, method: str) -> None:
    gradients = []
    for checkpointing in (False, True):
        model = tiny_siamese(architecture, method).train()
        if checkpointing:
            model.activation_checkpointing_enable()
        ids, mask = padded(prompts(), side="right")
        labels = ids.where(mask.bool() & (torch.arange(ids.shape[1]) > 3), -100)
        model(ids, attention_mask=mask, labels=labels).loss.backward()
        gradients.append({n: p.grad for n, p in model.named_parameters() if p.requires_grad})
    assert any(each.abs().max() > 1e-4 for each in gradients[0].values())
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, msg=name, **CLOSE)


def test_gradients_through_logits_equal_those_of_the_loss() -> None:
    """A custom loss on logits, in training mode, with checkpointing."""
    row, query = prompts()[0], 5
    ids = torch.tensor([row])
    gradients = []
    for custom_loss in (False, True):
        model = tiny_siamese().train()
        model.activation_checkpointing_enable()
        if custom_loss:
            logits = model(ids, query_mask=torch.ones(1, query)).logits[0, query - 1 : -1]
            loss = torch.nn.functional.cross_entropy(logits, ids[0, query:])
        else:
            loss = model(ids, labels=ids.where(torch.arange(len(row)) >= query, -100)).loss
        loss.backward()
        gradients.append([p.grad for p in model.parameters() if p.requires_grad])
    torch.testing.assert_close(gradients[1], gradients[0], **CLOSE)


def test_checkpointing_rejects_a_cache_in_training() -> None:
    model = tiny_siamese().train()
    model.activation_checkpointing_enable()
    with pytest.raises(ValueError, match="eval"):
        model.generate(torch.tensor(prompts()[:1]), max_new_tokens=2)


@pytest.mark.parametrize(("architecture", "method"), CASES)
@torch.no_grad()
def test_padding_changes_nothing(architecture: str, method: str) -> None:
    model = tiny_siamese(architecture, method)
    reference = Reference(model, architecture, method)
    rows = prompts()
    queries = [len(row) - 3 for row in rows]
    alone = [
        model(torch.tensor([row]), query_mask=torch.ones(1, query)).logits[0]
        for row, query in zip(rows, queries, strict=True)
    ]
    for side in ("left", "right"):
        ids, mask = padded(rows, side=side)
        query_mask = marked(rows, queries, side=side)
        logits = model(ids, attention_mask=mask, query_mask=query_mask).logits
        for row in range(len(rows)):
            real = logits[row][mask[row].bool()]
            torch.testing.assert_close(real, alone[row], **CLOSE)
    for row, query, logits in zip(rows, queries, alone, strict=True):
        torch.testing.assert_close(logits[query - 1 :], reference.logits(row, query), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("architecture", "method"), CASES)
@pytest.mark.parametrize("gradients", [False, True], ids=["dual batch", "two passes"])
def test_no_logit_depends_on_a_later_token(architecture: str, method: str, gradients: bool) -> None:
    model = tiny_siamese(architecture, method)
    row = prompts()[0]
    query_mask = torch.ones(1, 7)
    with torch.set_grad_enabled(gradients):
        logits = model(torch.tensor([row]), query_mask=query_mask).logits[0]
        for place in range(1, len(row)):  # inside the query and after it
            changed = [*row[:place], (row[place] + 1) % 97, *row[place + 1 :]]
            after = model(torch.tensor([changed]), query_mask=query_mask).logits[0]
            torch.testing.assert_close(after[:place], logits[:place], atol=1e-6, rtol=1e-6)
            assert not torch.allclose(after[place:], logits[place:], atol=1e-3)


@pytest.mark.parametrize("pooling", ["mean", "max", "last"])
@torch.no_grad()
def test_poolings_are_causal_and_independent_of_chunks(pooling: str) -> None:
    model = tiny_siamese("qwen2", "ia3", pooling=pooling)
    rows = prompts()
    ids, mask = padded(rows, side="left")
    query_mask = marked(rows, [len(row) - 2 for row in rows], side="left")
    full = model(ids, attention_mask=mask, query_mask=query_mask).logits
    cache = model.new_cache(query_mask=query_mask)
    chunks = [
        model(ids[:, a:b], attention_mask=mask[:, :b], past_key_values=cache).logits
        for a, b in ((0, 5), (5, 6), (6, 11), (11, 12))
    ]
    real = mask.bool()
    torch.testing.assert_close(torch.cat(chunks, dim=1)[real], full[real], **CLOSE)
    ids[:, 8] = (ids[:, 8] + 1) % 97
    after = model(ids, attention_mask=mask, query_mask=query_mask).logits
    torch.testing.assert_close(after[:, :8][real[:, :8]], full[:, :8][real[:, :8]], **CLOSE)
