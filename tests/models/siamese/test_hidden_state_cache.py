"""The bank of original memories: what the frozen pass gives, and no other training by it."""

from __future__ import annotations

import pytest
import torch

from imsm.data.batching import collate_training
from imsm.models.siamese import hidden_state_cache as memory_bank
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
    monkeypatch.setattr(memory_bank, "CHUNK_TOKENS", 40)


def bank(model: SiameseForCausalLM, count: int = 12) -> HiddenStateCache:
    return compute_in_memory(model, tiny_examples(count), pad_id=0)


@pytest.mark.parametrize("pooling", ["mean", "max", "last"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_rows_are_what_each_example_alone_gives(architecture: str, pooling: str) -> None:
    model = tiny_siamese(architecture, pooling=pooling).train()
    made = bank(model)
    assert model.training
    for item in tiny_examples():
        found = made.model_inputs([item])
        ids = torch.tensor([item.prompt_ids + item.answer_ids])
        with torch.no_grad(), model.streams.adapter_disabled():
            memory = model.streams.decoder(input_ids=ids).last_hidden_state[0]
        prompt = len(item.prompt_ids)
        expected = memory[prompt - 1 : -1]
        torch.testing.assert_close(found["original_memory"], expected, atol=1e-5, rtol=1e-5)
        query = memory[:prompt]
        pooled = {"mean": query.mean(0), "max": query.amax(0), "last": query[-1]}[pooling]
        torch.testing.assert_close(found["original_query"][0], pooled, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("gate", [QUERY_GATE, TOKEN_GATE], ids=["query", "token"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_loss_and_gradients_are_those_of_two_passes(gate: dict, side: str) -> None:
    model = tiny_siamese("llama", "lora", gate=gate).train()
    chosen = tiny_examples()[3:8]
    plain = collate_training(chosen, pad_id=0)
    if side == "left":
        plain = {name: moved_left(each, plain["attention_mask"]) for name, each in plain.items()}
    expected = model(**plain)
    expected.loss.backward()
    gradients = [p.grad.clone() for p in model.parameters() if p.requires_grad]
    model.zero_grad()
    output = model(**plain, **bank(model).model_inputs(chosen))
    output.loss.backward()
    torch.testing.assert_close(output.loss, expected.loss, atol=1e-5, rtol=1e-6)
    torch.testing.assert_close(output.gate_mean, expected.gate_mean, atol=1e-5, rtol=1e-6)
    found = [p.grad for p in model.parameters() if p.requires_grad]
    for one, other in zip(found, gradients, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)


def moved_left(values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """The same rows with their padding on the left."""
    gaps = (mask == 0).sum(dim=1).tolist()
    return torch.stack([row.roll(gap) for row, gap in zip(values, gaps, strict=True)])


def test_the_original_stream_is_not_run(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_siamese().train()
    made = bank(model)
    run: list[str] = []
    memory = model.streams.hidden_states

    def noted(inputs: dict, *, stream: str, cache: None) -> torch.Tensor:
        run.append(stream)
        return memory(inputs, stream=stream, cache=cache)

    monkeypatch.setattr(model.streams, "hidden_states", noted)
    model(**model_inputs(CPU, tiny_examples()[:4], pad_id=0, hidden_state_cache=None))
    assert run == ["original", "tuned"]
    model(**model_inputs(CPU, tiny_examples()[:4], pad_id=0, hidden_state_cache=made))
    assert run == ["original", "tuned", "tuned"]


def test_kl_to_the_original_reads_the_bank() -> None:
    model = tiny_siamese(gate=None).train()
    model.kl_regularizer = KLRegularizer(weight=0.7)
    chosen = tiny_examples()[:4]
    expected = model(**collate_training(chosen, pad_id=0))
    found = model(**model_inputs(CPU, chosen, pad_id=0, hidden_state_cache=bank(model)))
    torch.testing.assert_close(found.loss, expected.loss, atol=1e-5, rtol=1e-6)
    torch.testing.assert_close(found.divergence, expected.divergence, atol=1e-5, rtol=1e-5)
    assert found.divergence > 0.01


def test_who_fills_it_and_in_what_order_changes_no_bit() -> None:
    one = compute_in_memory(tiny_siamese("llama", "lora"), tiny_examples(), pad_id=0)
    twice = [*reversed(tiny_examples()), *tiny_examples()[:5]]
    other = compute_in_memory(tiny_siamese("llama", "ia3", gate=TOKEN_GATE), twice, pad_id=0)
    assert torch.equal(one.hidden_states, other.hidden_states) and torch.equal(one.queries, other.queries)
    assert one.index == other.index
    assert hash_examples(canonical_order(tiny_examples())) == hash_examples(canonical_order(twice))
    assert hash_examples(canonical_order(tiny_examples())) != hash_examples(canonical_order(tiny_examples()[1:]))


def test_rows_have_the_backbones_dtype_and_queries_do_not() -> None:
    made = bank(tiny_siamese(dtype=torch.bfloat16))
    assert made.hidden_states.dtype is torch.bfloat16 and made.queries.dtype is torch.float32
    answers = sum(len(item.answer_ids) for item in tiny_examples())
    size = cache_bytes(num_examples=12, num_answer_tokens=answers, hidden_size=32, dtype=torch.bfloat16)
    assert size == made.hidden_states.nbytes + made.queries.nbytes


def test_what_does_not_fit_is_refused() -> None:
    model = tiny_siamese().train()
    made = bank(model)
    batch = collate_training(tiny_examples()[:3], pad_id=0)
    known = made.model_inputs(tiny_examples()[:3])
    with pytest.raises(ValueError, match="original_memory: "):
        model(**batch, **made.model_inputs(tiny_examples()[:2]))
    with pytest.raises(ValueError, match="original_query"):
        model(**batch, original_memory=known["original_memory"])
    with pytest.raises(ValueError, match="without labels"):
        model(batch["input_ids"], original_memory=known["original_memory"])
    with pytest.raises(KeyError):
        made.model_inputs(tiny_examples(13)[12:])
