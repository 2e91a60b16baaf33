"""A resumed pretraining is the uninterrupted one."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import LlamaForCausalLM

from imsm.models.backbones.loading import load_tokenizer
from scripts.miniature import pretrain
from scripts.miniature.world import make_world


def test_a_resumed_training_equals_the_uninterrupted_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shape = {"hidden_size": 64, "num_hidden_layers": 1, "intermediate_size": 64, "num_attention_heads": 1}
    monkeypatch.setattr(pretrain, "SHAPE", {**pretrain.SHAPE, **shape, "num_key_value_heads": 1})
    monkeypatch.setattr(pretrain, "BLOCK", 2)
    monkeypatch.setattr(pretrain, "CHUNK", 200)
    stage = dataclasses.replace(pretrain.STAGES[0], blocks=2)
    monkeypatch.setattr(pretrain, "STAGES", (stage,))
    world, tokenizer = make_world(), load_tokenizer(name_or_path="imsm:miniature")

    def train(name: str, stop: bool = False) -> dict[str, torch.Tensor]:
        def measure(model: LlamaForCausalLM) -> dict[str, float]:
            return {"form": 1.0}

        folder, state = tmp_path / name, tmp_path / f"{name}-state"
        with pytest.MonkeyPatch.context() as patch:
            if stop:
                patch.setattr(pretrain, "_append", _stop)
            pretrain.pretrain(
                world, tokenizer, forbidden=frozenset(), seed=1, folder=folder, state=state, measure=measure
            )
        return load_file(folder / "model.safetensors")

    whole = train("whole")
    with pytest.raises(KeyboardInterrupt):
        train("resumed", stop=True)
    resumed = train("resumed")
    assert {tensor.dtype for tensor in whole.values()} == {torch.float16}
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    assert (tmp_path / "whole-state" / "progress.csv").read_text().startswith("steps,loss")


def _stop(file: Path, row: dict[str, float]) -> None:
    raise KeyboardInterrupt
