"""Arguments, hashes and log line of a run's model."""

from __future__ import annotations

import pytest
import torch

from imsm.pipeline.model import (
    build_kl_regularizer,
    format_trainable,
    inference_settings,
    model_hash,
    model_kwargs,
    needs_original_stream,
)
from tests.helpers.config import config


def test_only_the_interwoven_stream_has_a_gate() -> None:
    assert model_kwargs(config("method=imsm", "gate.rank=4"))["gate"]["rank"] == 4
    assert model_kwargs(config("method=peft"))["gate"] is None


def test_the_original_is_needed_for_interweaving_and_for_the_kl_penalty() -> None:
    assert needs_original_stream(config("method=imsm"))
    assert not needs_original_stream(config("method=peft"))
    assert needs_original_stream(config("method=peft", "trainer.kl_beta=0.1"))
    assert not needs_original_stream(config("method=original"))


def test_the_kl_penalty_has_the_configured_weight() -> None:
    assert build_kl_regularizer(config()) is None
    regularizer = build_kl_regularizer(config("trainer.kl_beta=0.25"))
    assert regularizer is not None and regularizer.weight == 0.25


FILES = {"adapter/adapter_config.json": "a", "adapter/adapter_model.safetensors": "b", "config.json": "c"}
SETTINGS = {"dtype": "float32", "attention": "sdpa", "device": "cpu"}


def test_the_model_hash_depends_on_backbone_files_settings_and_stream() -> None:
    hashes = [
        model_hash("interwoven", backbone_hash="a", settings=SETTINGS, files=FILES),
        model_hash("interwoven", backbone_hash="b", settings=SETTINGS, files=FILES),
        model_hash("tuned", backbone_hash="a", settings=SETTINGS, files=FILES),
        model_hash("original", backbone_hash="a", settings=SETTINGS),
        *(
            model_hash("interwoven", backbone_hash="a", settings=SETTINGS | {key: "x"}, files=FILES)
            for key in SETTINGS
        ),
        *(model_hash("interwoven", backbone_hash="a", settings=SETTINGS, files=FILES | {key: "x"}) for key in FILES),
    ]
    assert len(set(hashes)) == len(hashes)


def test_a_static_cache_is_part_of_the_settings_and_nothing_else_changes() -> None:
    device = torch.device("cpu")
    plain = inference_settings(config(), device=device)
    assert set(plain) == set(SETTINGS)
    static = inference_settings(config("evaluation.static_cache=true"), device=device)
    assert static == plain | {"decoding": "static cache"}


def test_quantization_is_part_of_the_settings_and_of_the_models_backbone_if_set() -> None:
    device = torch.device("cpu")
    quantized = config("backbone.quantization=nf4")
    assert inference_settings(quantized, device=device) == {
        **inference_settings(config(), device=device),
        "quantization": "nf4",
    }
    plain = model_kwargs(config())["backbone"]
    assert "quantization" not in plain
    assert model_kwargs(quantized)["backbone"] == {**plain, "quantization": "nf4"}


def test_the_tuned_stream_does_not_depend_on_gate_and_pooling() -> None:
    tuned = model_hash("tuned", backbone_hash="a", settings=SETTINGS, files=FILES)
    changed = FILES | {"config.json": "x", "gate.safetensors": "y"}
    assert model_hash("tuned", backbone_hash="a", settings=SETTINGS, files=changed) == tuned


def test_the_device_counts_with_its_name_where_precision_is_reduced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("imsm.pipeline.model.device_name", lambda device: "A100")
    device = torch.device("cpu")
    full = inference_settings(config("backbone.dtype=float32"), device=device)
    assert full == {"dtype": "float32", "attention": "sdpa", "device": "cpu"}
    reduced = inference_settings(config("backbone.dtype=bfloat16"), device=device)
    assert reduced == {"dtype": "bfloat16", "attention": "sdpa", "device": "cpu A100"}
    eager = inference_settings(config("backbone.attn_implementation=eager"), device=device)
    assert eager["attention"] == "eager"


def test_the_log_line_adds_adapter_and_gate() -> None:
    assert format_trainable({"adapter": 1000, "gate": 24}) == "trainable parameters: 1,024 (adapter 1,000, gate 24)"
