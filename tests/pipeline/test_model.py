"""Arguments, hashes and log line of a run's model."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file

from imsm.pipeline.model import (
    build_kl_regularizer,
    format_trainable,
    model_hash,
    model_kwargs,
    needs_original_stream,
    weight_hashes,
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


def test_weight_hashes_cover_every_file_by_relative_path(tmp_path: Path) -> None:
    (tmp_path / "adapter").mkdir()
    save_file({"a": torch.zeros(2)}, tmp_path / "gate.safetensors")
    save_file({"a": torch.ones(2)}, tmp_path / "adapter" / "adapter_model.safetensors")
    (tmp_path / "config.json").write_text("{}")
    hashes = weight_hashes(tmp_path)
    assert [name for name, _ in hashes] == ["adapter/adapter_model.safetensors", "gate.safetensors"]
    save_file({"a": torch.ones(2)}, tmp_path / "gate.safetensors")
    assert weight_hashes(tmp_path)[1] != hashes[1]


def test_the_model_hash_depends_on_weights_dtype_and_stream() -> None:
    run_config = config("backbone.dtype=float32")
    hashes = {
        model_hash(run_config, "original", backbone_hash="a"),
        model_hash(run_config, "original", backbone_hash="b"),
        model_hash(run_config, "tuned", backbone_hash="a"),
        model_hash(run_config, "tuned", backbone_hash="a", trained_hashes=[["gate", "c"]]),
        model_hash(config("backbone.dtype=bfloat16"), "original", backbone_hash="a"),
    }
    assert len(hashes) == 5


def test_the_log_line_adds_adapter_and_gate() -> None:
    assert format_trainable({"adapter": 1000, "gate": 24}) == "trainable parameters: 1,024 (adapter 1,000, gate 24)"
