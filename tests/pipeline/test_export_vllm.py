"""Export for vLLM: base weights plus changes and gate give the run's hidden states; clear refusals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import OFTConfig, VeraConfig
from safetensors.torch import load_file
from torch import nn
from transformers import AutoTokenizer, LlamaForCausalLM, PreTrainedModel

from imsm.cli.main import main
from imsm.models.adapters.base import AdapterSpec
from imsm.models.siamese.model import SiameseForCausalLM
from imsm.pipeline import export_vllm as exporting
from imsm.pipeline.export_vllm import ARCHITECTURES, export_vllm, linear_change
from imsm.serving import vllm as plugin
from imsm.serving.vllm.gate import Gate
from imsm.utils.errors import UserError
from imsm.utils.run_dir import RunDir
from tests.helpers.adapters import prompt_tuning
from tests.helpers.word_run import run_words
from tests.models.siamese.tiny import ATTENTION, tiny_siamese

TOKENS = torch.tensor([[4, 5, 6, 7, 5, 9]])
MORE_METHODS = {
    "oft": AdapterSpec(OFTConfig(task_type="CAUSAL_LM", target_modules=ATTENTION, oft_block_size=8)),
    "vera": AdapterSpec(VeraConfig(task_type="CAUSAL_LM", target_modules=ATTENTION, r=4)),
}


def add_changes(plain: PreTrainedModel, changes: dict[str, torch.Tensor]) -> None:
    """Add exported changes to the weights of a plain model."""
    for name, tensor in changes.items():
        layer, _, kind = name.rpartition(".")
        linear: Any = plain.get_submodule(layer)
        with torch.no_grad():
            if kind == "up":
                linear.weight += tensor @ changes[f"{layer}.down"]
            elif kind == "delta":
                linear.weight += tensor
            elif kind == "bias":
                linear.bias = nn.Parameter(tensor if linear.bias is None else linear.bias + tensor)


@pytest.mark.parametrize("method", ["lora", "dora", "ia3", "adalora", *MORE_METHODS])
def test_changes_make_the_backbone_the_tuned_model(method: str) -> None:
    model = tiny_siamese("qwen2", MORE_METHODS.get(method, method))
    tokens = torch.tensor([[5, 17, 80, 3, 9]])
    model.stream = "tuned"
    with torch.inference_mode():
        expected = model(input_ids=tokens).logits
    changes = {
        f"{name}.{kind}": tensor
        for name, layer in model.backbone.named_modules()
        if layer in set(model.streams.layers)
        for kind, tensor in linear_change(layer).items()
    }
    plain = model.adapted.unload()
    with torch.inference_mode():
        original = plain(input_ids=tokens).logits
    add_changes(plain, changes)
    with torch.inference_mode():
        torch.testing.assert_close(plain(input_ids=tokens).logits, expected, rtol=1e-3, atol=1e-3)
    assert not torch.allclose(original, expected, atol=1e-2)
    low_rank = method in ("lora", "adalora", "vera")
    assert {name.rpartition(".")[2] for name in changes} == ({"up", "down"} if low_rank else {"delta"})


def test_rank_of_a_change_is_that_of_its_factors() -> None:
    model = tiny_siamese("llama", "lora")
    change = linear_change(model.streams.layers[0])
    assert change["up"].shape[1] == change["down"].shape[0] == 4


class Squared(nn.Module):
    """An adapter whose change is not linear."""

    def __init__(self) -> None:
        super().__init__()
        self.base_layer = nn.Linear(8, 8)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.base_layer(inputs) + inputs**2


def test_layers_that_are_not_linear_are_refused() -> None:
    with pytest.raises(ValueError, match="relative error"):
        linear_change(Squared())
    norm = nn.Module()
    norm.base_layer = nn.LayerNorm(8)
    with pytest.raises(ValueError, match=r"LayerNorm is not torch\.nn\.Linear"):
        linear_change(norm)


@pytest.fixture(scope="module")
def run(word_files: Path, tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    options = ("trainer.num_epochs=1", "trainer.learning_rate=0.3")
    return RunDir(run_words(word_files, tmp_path_factory.mktemp("runs"), *options))


def interwoven_logits(folder: Path) -> torch.Tensor:
    """Compute the interwoven logits from an exported folder, with transformers and the plugin's gate alone."""
    settings = json.loads((folder / "config.json").read_text())["imsm"]
    tensors = {name.removeprefix("imsm."): t for name, t in load_file(folder / "imsm.safetensors").items()}
    original, tuned = (LlamaForCausalLM.from_pretrained(folder) for _ in range(2))
    add_changes(tuned, {n.removeprefix("delta."): t for n, t in tensors.items() if n.startswith("delta.")})
    gate = Gate(**settings["gate"])
    gate.load({n.removeprefix("gate."): t for n, t in tensors.items() if n.startswith("gate.")})
    with torch.inference_mode():
        h_o, h_t = (model.model(input_ids=TOKENS).last_hidden_state[0] for model in (original, tuned))
        counts = torch.arange(1, len(h_o) + 1)[:, None]
        weight = gate(h_o, h_t, gate.query_part(h_o, h_t).cumsum(dim=0) / counts)
        return original.lm_head(torch.lerp(h_t, h_o, weight))


@pytest.mark.parametrize("link", [False, True])
def test_folder_gives_the_runs_logits_without_imsm_models(run: RunDir, tmp_path: Path, link: bool) -> None:
    kinds = export_vllm(run, tmp_path / "new", link=link)
    model = SiameseForCausalLM.from_pretrained(run.path)
    assert kinds["low rank"] + kinds["dense"] == len(model.streams.layers)
    with torch.inference_mode():
        expected = model(input_ids=TOKENS, query_mask=torch.ones_like(TOKENS)).logits[0]
    torch.testing.assert_close(interwoven_logits(tmp_path / "new"), expected, rtol=1e-4, atol=1e-4)
    config = json.loads((tmp_path / "new" / "config.json").read_text())
    assert (config["architectures"], config["model_type"]) == (["SiameseLlamaForCausalLM"], "llama")
    assert config["dtype"] == "float32"
    assert (tmp_path / "new" / "model.safetensors").is_symlink() == link
    ids = AutoTokenizer.from_pretrained(tmp_path / "new")("after red comes").input_ids
    assert ids == AutoTokenizer.from_pretrained(run.model)("after red comes").input_ids


def test_index_of_a_sharded_backbone_lists_the_tensors_of_the_plugin(tmp_path: Path) -> None:
    source, folder = tmp_path / "source", tmp_path / "folder"
    source.mkdir(), folder.mkdir()
    (source / "part.safetensors").write_bytes(b"weights")
    index = {"metadata": {}, "weight_map": {"model.norm.weight": "part.safetensors"}}
    (source / "model.safetensors.index.json").write_text(json.dumps(index))
    exporting.save_file({"imsm.gate.bias": torch.zeros(1)}, folder / "imsm.safetensors")
    exporting._write_backbone(source, folder, link=False)
    written = json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]
    assert written == {"model.norm.weight": "part.safetensors", "imsm.gate.bias": "imsm.safetensors"}
    assert (folder / "part.safetensors").read_bytes() == b"weights"
    index["weight_map"]["model.norm.weight"] = "../secret"
    (source / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match="outside its folder"):
        exporting._write_backbone(source, folder, link=False)


def refusal(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, model: SiameseForCausalLM) -> str:
    monkeypatch.setattr(exporting, "load_verified", lambda run, dtype: model)
    with pytest.raises(UserError) as caught:
        export_vllm(RunDir(tmp_path / "run"), tmp_path / "new")
    assert not (tmp_path / "new").exists()
    message = str(caught.value)
    assert "\n" not in message and "imsm serve" in message
    return message


def test_what_the_plugin_does_not_compute_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    query = {"_target_": "imsm.models.siamese.gate.Gate", "inputs": ["query_original", "original"], "rank": 2}
    additive = {**query, "inputs": ["original", "tuned"], "query_share": 0.5}
    skipping = tiny_siamese(gate=query)
    skipping.skip_threshold = 0.1
    cases = {
        "gate.pooling=max": tiny_siamese(gate=query, pooling="max"),
        "gate.query_share": tiny_siamese(gate=additive),
        "gate.skip_threshold": skipping,
        "learned prompt": tiny_siamese(method=prompt_tuning(num_virtual_tokens=2)),
    }
    for reason, model in cases.items():
        assert reason in refusal(monkeypatch, tmp_path, model)
    monkeypatch.setattr(exporting, "ARCHITECTURES", {"QwenForCausalLM": "SiameseQwenForCausalLM"})
    assert "QwenForCausalLM, not LlamaForCausalLM" in refusal(monkeypatch, tmp_path, tiny_siamese())


def test_command_writes_the_folder_and_names_it(
    run: RunDir, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert not main(["export", str(run.path), "--vllm", str(tmp_path / "new"), "--link"])
    assert f"vllm serve {tmp_path / 'new'}" in capsys.readouterr().out
    assert main(["export", str(run.path), "--merged", str(tmp_path / "other"), "--link"]) == 2
    assert "--link: is for --vllm" in capsys.readouterr().err


def test_the_plugin_has_the_architectures() -> None:
    assert ARCHITECTURES == plugin.ARCHITECTURES
