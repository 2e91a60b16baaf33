"""Answers and log-likelihoods on the device."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from imsm.evaluation.generation import generate_responses
from imsm.evaluation.likelihood import log_likelihoods
from imsm.models.siamese.adapter_check import check_adapter, snapshot
from imsm.models.siamese.decoding_session import DecodingSession
from imsm.models.siamese.model import SiameseForCausalLM
from tests.gpu.tiny import DEVICE, both_dtypes, lora_with_dropout, model_on_device
from tests.models.siamese.tiny import prompts, tiny_backbone, tiny_tokenizer

pytestmark = pytest.mark.gpu
GOLD = [(5, 6, 7), (8,)]


def answered(model: SiameseForCausalLM, rows: list[list[int]]) -> tuple[list[str], list[list[float]]]:
    """Return the greedy responses, and the log-likelihoods of two given answers to each prompt."""
    session = DecodingSession(model, rows, pad_id=0, max_new_tokens=8)
    scores = log_likelihoods(session, [GOLD for _ in rows], pad_id=0)
    responses = generate_responses(session, tiny_tokenizer(), max_new_tokens=8, stop=None)
    return [response.text for response in responses], scores


def test_a_batch_gives_the_answers_of_one_prompt_at_a_time() -> None:
    model = model_on_device()
    model.backbone.generation_config.eos_token_id = 2
    rows = prompts(6)
    texts, scores = answered(model, rows)
    single = [answered(model, [row]) for row in rows]
    assert texts == [text for (text,), _ in single]
    for row, (_, (expected,)) in zip(scores, single, strict=True):
        assert row == pytest.approx(expected, abs=2e-3)


@pytest.mark.parametrize("stream", ["original", "tuned", "interwoven"])
def test_static_caches_give_the_tokens_of_growing_ones(stream: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """On a GPU a step is recorded as a CUDA graph and replayed."""
    model = model_on_device()
    model.stream = stream
    found = []
    for static_cache in (False, True):
        session = DecodingSession(model, prompts(4), pad_id=0, max_new_tokens=12)
        options = {"max_new_tokens": 12, "stop": None, "static_cache": static_cache}
        found.append([each.text for each in generate_responses(session, tiny_tokenizer(), **options)])
    assert found[0] == found[1]
    assert "no CUDA graph" not in capsys.readouterr().err


@pytest.mark.parametrize(
    "options", [{"num_beams": 3}, {"do_sample": True}, {"num_return_sequences": 2, "do_sample": True}]
)
def test_beams_and_sampling(options: dict[str, Any]) -> None:
    model = model_on_device()
    ids = torch.tensor([prompts()[0]], device=DEVICE)
    tokens = model.generate(ids, max_new_tokens=5, **options)
    assert tokens.device.type == DEVICE.type and tokens.shape[1] <= ids.shape[1] + 5
    assert torch.equal(tokens[:, : ids.shape[1]], ids.expand(len(tokens), -1))


@both_dtypes
def test_the_adapter_check_allows_both_streams_in_one_pass(dtype: torch.dtype) -> None:
    """The check compares on the device, in the model's precision."""
    adapter = lora_with_dropout(0.0)
    before = snapshot(tiny_backbone("llama", dtype=dtype).to(DEVICE), adapter.config)
    model = model_on_device(dtype, adapter)
    random_state = torch.get_rng_state()
    check_adapter(model, before)
    assert torch.equal(torch.get_rng_state(), random_state)
    assert model.streams.batch_both and model.streams.adapter_layers.supports_dual
