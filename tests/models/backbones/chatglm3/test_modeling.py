"""The ChatGLM3 port against the architecture's equations and the published files' layout."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, DynamicCache, PreTrainedModel

from imsm.models.adapters.base import attach_adapter
from imsm.models.backbones.loading import load_backbone, register_custom_models
from imsm.pipeline.model import build_adapter
from imsm.utils.errors import UserError
from tests.helpers.config import config
from tests.models.backbones.chatglm3 import equations
from tests.models.backbones.chatglm3.checkpoint import PREFIX, published_weights, save_published
from tests.models.siamese.tiny import padded

CLOSE = {"atol": 1e-4, "rtol": 1e-5}
WEIGHTS = published_weights()
ROWS = [[401, 403, 7, 99, 310, 5, 266, 31], [401, 403, 55, 8, 17], [401, 403, 12]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_published(tmp_path_factory.mktemp("chatglm3"))


@pytest.fixture(scope="module", params=["eager", "sdpa"])
def model(request: pytest.FixtureRequest, folder: Path) -> PreTrainedModel:
    return load_backbone(name_or_path=str(folder), attn_implementation=request.param)


@torch.no_grad()
def test_forward_equals_the_equations(model: PreTrainedModel) -> None:
    for row in ROWS:
        expected = equations.logits(row, WEIGHTS)
        assert expected.abs().max() > 1  # CLOSE is small beside it
        torch.testing.assert_close(model(torch.tensor([row])).logits[0], expected, **CLOSE)


@torch.no_grad()
def test_the_decoder_returns_hidden_states_after_the_final_norm(model: PreTrainedModel) -> None:
    body = model.get_decoder()
    found = body(torch.tensor(ROWS[:1])).last_hidden_state[0]
    torch.testing.assert_close(found, equations.memory(ROWS[0], WEIGHTS), **CLOSE)
    layers = model(torch.tensor(ROWS[:1]), output_hidden_states=True).hidden_states
    assert len(layers) == 4
    torch.testing.assert_close(layers[-1][0], found)


@torch.no_grad()
def test_decoding_with_a_cache_equals_the_equations(model: PreTrainedModel) -> None:
    expected = equations.logits(ROWS[0], WEIGHTS)
    cache, place = DynamicCache(config=model.config), 0
    for piece in ([401, 403, 7], [99], [310, 5], [266], [31]):
        found = model(torch.tensor([piece]), past_key_values=cache).logits[0]
        torch.testing.assert_close(found, expected[place : place + len(piece)], **CLOSE)
        place += len(piece)
    keys = cache.layers[0].keys
    assert keys is not None and keys.shape == (1, 2, len(ROWS[0]), 16)  # the groups', not the heads'


@torch.no_grad()
def test_generate_equals_the_equations_in_a_padded_batch(model: PreTrainedModel) -> None:
    ids, mask = padded(ROWS, side="left")
    expected = [equations.greedy(row, WEIGHTS, steps=8) for row in ROWS]
    assert len({token for row in expected for token in row}) > 5
    options = {"attention_mask": mask, "max_new_tokens": 8, "do_sample": False}
    found = model.generate(ids, **options)[:, ids.shape[1] :].tolist()
    for row, answer in zip(found, expected, strict=True):
        assert row == answer + [0] * (len(row) - len(answer))
    beams = {**options, "num_beams": 3}
    assert torch.equal(model.generate(ids, **beams), model.generate(ids, **beams, use_cache=False))


def test_published_files_load_without_missing_or_unexpected_names(folder: Path) -> None:
    register_custom_models()
    model, found = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    assert not any(found.values()), found
    names = set()
    for shard in sorted(folder.glob("*.safetensors")):
        with safe_open(shard, "pt") as opened:
            names |= set(opened.keys())
    inverse = PREFIX + "rotary_pos_emb.inv_freq"
    assert names - set(model.state_dict()) == {inverse}
    assert set(model.state_dict()) <= names
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, WEIGHTS[name]), name
    # the file's frequencies are those of another model: the port computes its own
    assert WEIGHTS[inverse].shape == model.transformer.rotary_pos_emb.inv_freq.shape
    assert model.transformer.rotary_pos_emb.inv_freq.tolist() == pytest.approx([1, 0.1, 0.01, 1e-3])


def test_published_keys_are_read_and_no_remote_code_is_executed(folder: Path) -> None:
    register_custom_models()
    found = AutoConfig.from_pretrained(folder)
    assert (found.vocab_size, found.hidden_size, found.intermediate_size) == (512, 32, 48)
    assert (found.num_hidden_layers, found.num_attention_heads) == (3, 4)
    assert (found.num_key_value_heads, found.head_dim) == (2, 16)
    assert (found.max_position_embeddings, found.rms_norm_eps) == (256, 1e-5)
    assert (found.attention_bias, found.tie_word_embeddings) == (True, False)
    assert found.num_layers == 3  # read by its published name too
    assert "auto_map" not in found.to_dict()


def test_a_saved_model_loads_again(folder: Path, tmp_path: Path) -> None:
    model = load_backbone(name_or_path=str(folder), dtype="bfloat16")
    assert {weight.dtype for weight in model.state_dict().values()} == {torch.bfloat16}
    model.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "chatglm"
    again = load_backbone(name_or_path=str(tmp_path), dtype="bfloat16")
    ids = torch.tensor(ROWS[:1])
    assert torch.equal(again(ids).logits, model(ids).logits)
    exact = equations.logits(ROWS[0], WEIGHTS)
    assert (model(ids).logits[0] - exact).abs().mean() < 0.05 * exact.abs().mean()


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("rope_ratio", 50),  # chatglm3-6b-32k
        ("quantization_bit", 4),
        ("pre_seq_len", 128),
        ("multi_query_attention", False),
        ("add_bias_linear", True),
        ("position_encoding_2d", True),  # chatglm-6b
        ("tie_word_embeddings", True),
    ],
)
def test_another_architecture_of_the_family_is_rejected(folder: Path, tmp_path: Path, key: str, value: object) -> None:
    published = json.loads((folder / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**published, key: value}))
    with pytest.raises(UserError, match=f"{key}={value} is not supported"):
        load_backbone(name_or_path=str(tmp_path))


def test_no_pickle_is_executed_to_read_weights(tmp_path: Path) -> None:
    """The published repository has `.bin` files next to its safetensors."""
    folder, trace = save_published(tmp_path / "model"), tmp_path / "trace"

    class Hostile:
        def __reduce__(self) -> tuple[object, tuple[str, str]]:
            return open, (str(trace), "w")

    torch.save({PREFIX + "output_layer.weight": Hostile()}, folder / "pytorch_model.bin")
    assert torch.equal(
        load_backbone(name_or_path=str(folder)).transformer.output_layer.weight,
        WEIGHTS[PREFIX + "output_layer.weight"],
    )
    for file in folder.glob("*.safetensors*"):
        file.unlink()
    with pytest.raises(UserError, match=r"more than tensors.*safetensors"):
        load_backbone(name_or_path=str(folder))
    assert not trace.exists()
    (folder / "pytorch_model.bin").write_bytes(b"PK\x03\x04 cut off")
    with pytest.raises(UserError, match="cannot be loaded"):
        load_backbone(name_or_path=str(folder))
    torch.save(WEIGHTS, folder / "pytorch_model.bin")  # plain tensors do load
    ids = torch.tensor(ROWS[:1])
    found = load_backbone(name_or_path=str(folder))(ids).logits[0]
    torch.testing.assert_close(found, equations.logits(ROWS[0], WEIGHTS), **CLOSE)


def test_missing_weights_are_rejected(tmp_path: Path) -> None:
    folder = save_published(tmp_path)
    file = folder / "model.safetensors.index.json"
    index = json.loads(file.read_text())
    lacking = PREFIX + "output_layer.weight"
    shard = index["weight_map"].pop(lacking)
    kept = {name: each for name, each in load_file(folder / shard).items() if name != lacking}
    save_file(kept, folder / shard, {"format": "pt"})
    file.write_text(json.dumps(index))
    with pytest.raises(UserError, match=rf"lack {lacking} and 0 more weights"):
        load_backbone(name_or_path=str(folder))
    (folder / shard).unlink()
    with pytest.raises(UserError, match=r"cannot be loaded"):
        load_backbone(name_or_path=str(folder))


def test_gradient_checkpointing_changes_no_gradient(folder: Path) -> None:
    gradients = []
    for checkpointing in (False, True):
        model = load_backbone(name_or_path=str(folder)).requires_grad_(True).train()
        if checkpointing:
            model.activation_checkpointing_enable()
        ids = torch.tensor(ROWS[:1])
        model(ids, labels=ids).loss.backward()
        gradients.append({name: weight.grad for name, weight in model.named_parameters()})
    assert all(gradient.abs().max() > 1e-6 for gradient in gradients[0].values())
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, msg=name)


def test_embeddings_and_lm_head_can_be_replaced(folder: Path) -> None:
    model = load_backbone(name_or_path=str(folder))
    assert model.get_input_embeddings() is model.transformer.embedding.word_embeddings
    assert model.get_output_embeddings() is model.transformer.output_layer
    model.resize_token_embeddings(520)
    assert model.config.vocab_size == 520
    names = {name for name, _ in model.named_parameters()}
    assert names == {name for name in WEIGHTS if "inv_freq" not in name}
    assert model(torch.tensor([[519]])).logits.shape == (1, 1, 520)


@pytest.mark.parametrize(
    ("peft", "trainable"),
    [("lora", 3_899_392), ("ia3", 512_512), ("adalora", 2_924_880)],  # the paper's table 1
)
def test_trainable_parameters_of_the_full_size_equal_the_paper(peft: str, trainable: int) -> None:
    chosen = config("backbone=chatglm3", f"peft={peft}")
    register_custom_models()
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**chosen.backbone.architecture))
    model.requires_grad_(False)
    assert sum(weight.numel() for weight in model.parameters()) == 6_243_584_000
    # an answer of the real model also ends where somebody else's turn begins
    assert model.generation_config.eos_token_id == [2, 64795, 64797]
    adapted = attach_adapter(build_adapter(chosen), model)
    assert sum(p.numel() for p in adapted.parameters() if p.requires_grad) == trainable
