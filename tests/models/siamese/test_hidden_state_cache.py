"""The hidden-state cache holds what the original stream computes; training with it is equal."""

from __future__ import annotations

import pytest
import torch

from imsm.data.batching import collate_training
from imsm.models.siamese import hidden_state_cache
from imsm.models.siamese.hidden_state_cache import (
    HiddenStateCache,
    cache_bytes,
    canonical_order,
    compute_in_memory,
    hash_examples,
)
from imsm.models.siamese.kl import KLRegularizer
from imsm.models.siamese.model import SiameseForCausalLM
from imsm.training.train_step import model_inputs
from tests.models.siamese.tiny import ARCHITECTURES, QUERY_GATE, tiny_siamese
from tests.training.tiny_run import tiny_examples

TOKEN_GATE = {**QUERY_GATE, "inputs": ["original", "tuned"]}
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hidden_state_cache, "CHUNK_TOKENS", 40)


def cache_of(model: SiameseForCausalLM, count: int = 12) -> HiddenStateCache:
    return compute_in_memory(model, tiny_examples(count), pad_id=0)


@pytest.mark.parametrize("pooling", ["mean", "max", "last"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_rows_equal_a_pass_over_each_example_alone(architecture: str, pooling: str) -> None:
    model = tiny_siamese(architecture, pooling=pooling).train()
    cache = cache_of(model)
    assert model.training
    for example in tiny_examples():
        found = cache.model_inputs([example])
        ids = torch.tensor([example.prompt_ids + example.answer_ids])
        with torch.no_grad(), model.streams.adapter_disabled():
            hidden = model.streams.decoder(input_ids=ids).last_hidden_state[0]
        prompt = len(example.prompt_ids)
        expected = hidden[prompt - 1 : -1]
        torch.testing.assert_close(found["original_hidden_states"], expected, atol=1e-5, rtol=1e-5)
        query = hidden[:prompt]
        pooled = {"mean": query.mean(0), "max": query.amax(0), "last": query[-1]}[pooling]
        torch.testing.assert_close(found["original_query"][0], pooled, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("gate", [QUERY_GATE, TOKEN_GATE], ids=["query", "token"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_cached_loss_and_gradients_equal_two_passes(gate: dict, side: str) -> None:
    model = tiny_siamese("llama", "lora", gate=gate).train()
    examples = tiny_examples()[3:8]
    plain = collate_training(examples, pad_id=0)
    if side == "left":
        plain = {name: pad_left(each, plain["attention_mask"]) for name, each in plain.items()}
    expected = model(**plain)
    expected.loss.backward()
    gradients = [p.grad.clone() for p in model.parameters() if p.requires_grad]
    model.zero_grad()
    output = model(**plain, **cache_of(model).model_inputs(examples))
    output.loss.backward()
    torch.testing.assert_close(output.loss, expected.loss, atol=1e-5, rtol=1e-6)
    torch.testing.assert_close(output.gate_mean, expected.gate_mean, atol=1e-5, rtol=1e-6)
    found = [p.grad for p in model.parameters() if p.requires_grad]
    for one, other in zip(found, gradients, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)


def pad_left(values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Move the padding of every row to the left."""
    gaps = (mask == 0).sum(dim=1).tolist()
    return torch.stack([row.roll(gap) for row, gap in zip(values, gaps, strict=True)])


def test_original_stream_does_not_run(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_siamese().train()
    cache = cache_of(model)
    run: list[str] = []
    hidden = model.streams.hidden_states

    def recorded(inputs: dict, *, stream: str, cache: None) -> torch.Tensor:
        run.append(stream)
        return hidden(inputs, stream=stream, cache=cache)

    monkeypatch.setattr(model.streams, "hidden_states", recorded)
    model(**model_inputs(CPU, tiny_examples()[:4], pad_id=0, hidden_state_cache=None))
    assert run == ["original", "tuned"]
    model(**model_inputs(CPU, tiny_examples()[:4], pad_id=0, hidden_state_cache=cache))
    assert run == ["original", "tuned", "tuned"]


def test_kl_regularizer_uses_the_cache() -> None:
    model = tiny_siamese(gate=None).train()
    model.kl_regularizer = KLRegularizer(weight=0.7)
    examples = tiny_examples()[:4]
    expected = model(**collate_training(examples, pad_id=0))
    found = model(**model_inputs(CPU, examples, pad_id=0, hidden_state_cache=cache_of(model)))
    torch.testing.assert_close(found.loss, expected.loss, atol=1e-5, rtol=1e-6)
    torch.testing.assert_close(found.divergence, expected.divergence, atol=1e-5, rtol=1e-5)
    assert found.divergence > 0.01


def test_cache_does_not_depend_on_model_or_order_of_examples() -> None:
    one = compute_in_memory(tiny_siamese("llama", "lora"), tiny_examples(), pad_id=0)
    twice = [*reversed(tiny_examples()), *tiny_examples()[:5]]
    other = compute_in_memory(tiny_siamese("llama", "ia3", gate=TOKEN_GATE), twice, pad_id=0)
    assert torch.equal(one.hidden_states, other.hidden_states) and torch.equal(one.queries, other.queries)
    assert one.index == other.index
    assert hash_examples(canonical_order(tiny_examples())) == hash_examples(canonical_order(twice))
    assert hash_examples(canonical_order(tiny_examples())) != hash_examples(canonical_order(tiny_examples()[1:]))


def test_rows_have_the_backbone_dtype_and_queries_float32() -> None:
    cache = cache_of(tiny_siamese(dtype=torch.bfloat16))
    assert cache.hidden_states.dtype is torch.bfloat16 and cache.queries.dtype is torch.float32
    num_answer_tokens = sum(len(example.answer_ids) for example in tiny_examples())
    size = cache_bytes(num_examples=12, num_answer_tokens=num_answer_tokens, hidden_size=32, dtype=torch.bfloat16)
    assert size == cache.hidden_states.nbytes + cache.queries.nbytes


def test_mismatched_inputs_are_rejected() -> None:
    model = tiny_siamese().train()
    cache = cache_of(model)
    batch = collate_training(tiny_examples()[:3], pad_id=0)
    cached = cache.model_inputs(tiny_examples()[:3])
    with pytest.raises(ValueError, match="original_hidden_states: "):
        model(**batch, **cache.model_inputs(tiny_examples()[:2]))
    with pytest.raises(ValueError, match="original_query"):
        model(**batch, original_hidden_states=cached["original_hidden_states"])
    with pytest.raises(ValueError, match=r"^original_hidden_states: "):
        model(batch["input_ids"], original_hidden_states=cached["original_hidden_states"])
    with pytest.raises(KeyError):
        cache.model_inputs(tiny_examples(13)[12:])
