"""`generate()` equals a plain loop of two passes, for every batch size and decoding strategy."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import GenerationConfig, TextStreamer, pipeline

from imsm.models.siamese.gate import Gate
from imsm.utils.errors import UserError
from tests.helpers.adapters import prompt_tuning
from tests.models.siamese.reference import Reference
from tests.models.siamese.tiny import (
    ARCHITECTURES,
    CASES,
    decoded,
    padded,
    prompts,
    tiny_backbone,
    tiny_siamese,
    tiny_tokenizer,
)

GREEDY = {"max_new_tokens": 8, "do_sample": False}


@pytest.mark.parametrize(("architecture", "method"), CASES)
def test_greedy_equals_a_plain_two_pass_loop(architecture: str, method: str) -> None:
    model = tiny_siamese(architecture, method)
    reference = Reference(model, architecture, method)
    rows = prompts()
    expected = [reference.greedy(row, steps=8) for row in rows]
    assert [decoded(model, row) for row in rows] == expected
    assert len({token for row in expected for token in row}) > 5  # varied enough to detect a change
    model.stream = "tuned"
    assert [decoded(model, row) for row in rows] != expected


@pytest.mark.parametrize(("architecture", "method"), CASES)
def test_a_batch_of_16_equals_batches_of_1(architecture: str, method: str) -> None:
    model = tiny_siamese(architecture, method)
    rows = prompts(16)
    ids, mask = padded(rows, side="left")
    together = model.generate(ids, attention_mask=mask, **GREEDY)[:, ids.shape[1] :].tolist()
    for row, answer in zip(rows, together, strict=True):
        alone = decoded(model, row)
        assert answer == alone + [0] * (len(answer) - len(alone))


@torch.no_grad()
def test_gate_reads_the_prompt_as_the_query(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_siamese("qwen2", "lora")
    reference = Reference(model, "qwen2", "lora")
    rows = prompts()
    ids, mask = padded(rows, side="left")
    calls: list[tuple[torch.Tensor, ...]] = []
    plain = Gate.query_part

    def recorded(gate: Gate, *queries: torch.Tensor) -> torch.Tensor | None:
        calls.append(queries)
        return plain(gate, *queries)

    monkeypatch.setattr(Gate, "query_part", recorded)
    model.generate(ids, attention_mask=mask, **GREEDY)
    assert len(calls) == 2
    for queries in calls:  # for the first answer token, and once for all later ones
        for stream in (0, 1):
            means = [reference.hidden_states(row)[stream].mean(0) for row in rows]
            torch.testing.assert_close(queries[stream][:, -1], torch.stack(means), atol=1e-4, rtol=0)


def test_right_padding_is_rejected() -> None:
    model = tiny_siamese()
    ids, mask = padded(prompts(), side="right")
    with pytest.raises(ValueError, match="left"):
        model.generate(ids, attention_mask=mask, **GREEDY)
    with pytest.raises(ValueError, match="left"):
        model.generate(ids, **GREEDY)  # inferred from its padding tokens
    ids, mask = padded(prompts(), side="left")
    with_mask = model.generate(ids, attention_mask=mask, **GREEDY)
    assert torch.equal(model.generate(ids, **GREEDY), with_mask)


@pytest.mark.parametrize(("architecture", "method"), CASES)
def test_cache_and_chunked_prefill_change_nothing(architecture: str, method: str) -> None:
    model = tiny_siamese(architecture, method)
    ids, mask = padded(prompts(), side="left")
    cached = model.generate(ids, attention_mask=mask, **GREEDY)
    for other in ({"use_cache": False}, {"prefill_chunk_size": 5}):
        assert torch.equal(model.generate(ids, attention_mask=mask, **GREEDY, **other), cached)


@pytest.mark.parametrize(("architecture", "method"), CASES)
def test_beams_with_cache_equal_beams_without(architecture: str, method: str) -> None:
    model = tiny_siamese(architecture, method)
    ids, mask = padded(prompts(), side="left")
    settings = {"attention_mask": mask, **GREEDY, "num_beams": 3, "num_return_sequences": 2}
    with_cache = model.generate(ids, **settings)
    assert with_cache.shape[0] == 6
    assert torch.equal(model.generate(ids, **settings, use_cache=False), with_cache)
    greedy = model.generate(ids, attention_mask=mask, **GREEDY)
    assert with_cache[::2].tolist() != greedy.tolist()


def test_sampling_is_reproducible() -> None:
    model = tiny_siamese("gemma3", "ia3")
    ids, mask = padded(prompts(), side="left")
    samples = []
    for seed, cache in ((1, True), (1, True), (1, False), (2, True)):
        torch.manual_seed(seed)
        options = {"do_sample": True, "max_new_tokens": 8, "use_cache": cache, "temperature": 2.0}
        samples.append(model.generate(ids, attention_mask=mask, num_return_sequences=3, **options))
    assert samples[0].shape[0] == 9
    assert torch.equal(samples[0], samples[1]) and torch.equal(samples[0], samples[2])
    assert samples[0].tolist() != samples[3].tolist()


def test_prompt_lookup_and_embeddings_equal_greedy_decoding() -> None:
    """Assisted decoding processes several tokens at once and crops the cache."""
    model = tiny_siamese()
    row = prompts()[0] * 2
    expected = decoded(model, row, max_new_tokens=16)
    assert decoded(model, row, max_new_tokens=16, prompt_lookup_num_tokens=3) == expected
    embedded = model.get_input_embeddings()(torch.tensor([row]))
    options = {"max_new_tokens": 16, "do_sample": False}
    assert model.generate(inputs_embeds=embedded, **options)[0].tolist() == expected


def test_custom_query_mask() -> None:
    model = tiny_siamese()
    row = prompts()[0]
    ids, query_mask = torch.tensor([row]), torch.tensor([[0] * 8 + [1] * 4])
    expected = list(row)
    for _ in range(8):
        logits = model(torch.tensor([expected]), query_mask=query_mask).logits
        expected.append(int(logits[0, -1].argmax()))
    answer = model.generate(ids, query_mask=query_mask, **GREEDY)[0].tolist()
    assert answer == expected
    assert answer != model.generate(ids, **GREEDY)[0].tolist()


def test_custom_caches() -> None:
    model = tiny_siamese()
    row = prompts()[0]
    expected = decoded(model, row)
    assert decoded(model, row, past_key_values=model.new_cache()) == expected
    with pytest.raises(ValueError, match="cache_implementation"):
        decoded(model, row, cache_implementation="static")
    used = model.new_cache()
    decoded(model, row, past_key_values=used)
    with pytest.raises(ValueError, match=r"^query_mask: "):  # the answer became part of a new query
        decoded(model, row + expected + row, past_key_values=used)


def test_streaming_and_pipeline(capsys: pytest.CaptureFixture[str]) -> None:
    model = tiny_siamese()
    tokenizer = tiny_tokenizer()
    ids = tokenizer("w5 w17 w33 w8", return_tensors="pt")["input_ids"]
    text = tokenizer.decode(decoded(model, ids[0].tolist()))
    assert len(text.split()) > 3
    model.generate(ids, **GREEDY, streamer=TextStreamer(tokenizer, skip_prompt=True))
    assert capsys.readouterr().out.strip() == text
    generator = pipeline("text-generation", model=model, tokenizer=tokenizer)
    outputs = generator(["w5 w17 w33 w8", "w9 w9"], batch_size=2, return_full_text=False, **GREEDY)
    assert outputs[0][0]["generated_text"].strip() == text


@pytest.mark.parametrize("chunk", [None, 4])
def test_query_part_is_computed_once_per_answer(chunk: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_siamese()
    prompt = torch.tensor(prompts(1))
    options = {"max_new_tokens": 6, "min_new_tokens": 6, "prefill_chunk_size": chunk}
    expected = model.generate(prompt, **options)
    calls: list[tuple[int, ...]] = []
    plain = Gate.query_part

    def counted(gate: Gate, *queries: torch.Tensor) -> torch.Tensor | None:
        calls.append(queries[0].shape)
        return plain(gate, *queries)

    monkeypatch.setattr(Gate, "query_part", counted)
    assert torch.equal(model.generate(prompt, **options), expected)
    chunks = 1 if chunk is None else 3  # of 12 tokens
    assert len(calls) == chunks + 1, "once per prompt chunk, then once for the answer"


class _GateWithoutQueryPart(torch.nn.Module):
    """A custom gate without the optional `query_part`."""

    reads_query = True

    def __init__(self, gate: Gate) -> None:
        super().__init__()
        self.inner = gate

    def forward(self, *hidden_states: torch.Tensor) -> torch.Tensor:
        assert len(hidden_states) == 4
        return self.inner(*hidden_states)


def test_gate_without_query_part_generates_the_same() -> None:
    model = tiny_siamese()
    ids, mask = padded(prompts(), side="left")
    options = {"attention_mask": mask, "max_new_tokens": 8}
    expected = model.generate(ids, **options)
    model.gate = _GateWithoutQueryPart(model.gate)
    assert torch.equal(model.generate(ids, **options), expected)


@pytest.mark.parametrize("method", ["lora", prompt_tuning(num_virtual_tokens=3)])
@pytest.mark.parametrize("assistant", ["plain", "siamese", "lookup", "none"])
def test_assisted_decoding_gives_the_tokens_of_greedy_search(method: Any, assistant: str) -> None:
    model, helper = tiny_siamese(method=method), tiny_siamese()
    helper.stream = "tuned"
    options = {
        "plain": {"assistant_model": tiny_backbone("llama")},
        "siamese": {"assistant_model": helper},
        "lookup": {"prompt_lookup_num_tokens": 3},
        "none": {"custom_generate": _own_loop},
    }[assistant]
    for stream in model.available_streams():
        model.stream = stream
        expected = decoded(model, prompts()[0], max_new_tokens=12)
        assert decoded(model, prompts()[0], max_new_tokens=12, **options) == expected, stream


def _own_loop(model: Any, input_ids: Any, logits_processor: Any, stopping_criteria: Any, *args: Any, **options: Any):
    return model._sample(input_ids, logits_processor, stopping_criteria, *args, **options)


def test_unusable_decoding_methods_are_one_clear_error() -> None:
    model = tiny_siamese()
    for options, key in (
        ({"assistant_model": tiny_siamese()}, "assistant_model"),
        ({"assistant_early_exit": 1}, "assistant_early_exit"),
        ({"penalty_alpha": 0.6, "top_k": 4}, "penalty_alpha"),
        ({"dola_layers": "low"}, "dola_layers"),
        ({"generation_config": GenerationConfig(dola_layers="low", max_new_tokens=2)}, "dola_layers"),
        ({"custom_generate": "transformers-community/dola", "trust_remote_code": True}, "custom_generate"),
    ):
        with pytest.raises(ValueError, match=key):
            decoded(model, prompts()[0], **options)


def test_text_beyond_the_positions_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ARCHITECTURES["llama"], "max_position_embeddings", 20)
    model = tiny_siamese()
    rows = prompts(batch=2)
    ids, mask = padded(rows, side="left")
    assert model.generate(ids, attention_mask=mask, max_new_tokens=8).shape[1] <= 20
    with pytest.raises(UserError, match=r"12 tokens and 9 new ones .* 20 positions"):
        model.generate(ids, attention_mask=mask, max_new_tokens=9)
    with pytest.raises(UserError, match="21 tokens exceed"):
        model.generate(ids, max_length=40, attention_mask=mask, eos_token_id=None)
    long = torch.full((1, 21), 5)
    labels = long.where(torch.arange(21) > 3, -100)
    with pytest.raises(UserError, match="21 tokens"):
        model(long, labels=labels)
    # padding does not count
    assert model(long, labels=labels, attention_mask=(torch.arange(21) < 20)[None].long()).loss > 0
    virtual = tiny_siamese(method=prompt_tuning(num_virtual_tokens=3))
    assert virtual.max_positions == 17
