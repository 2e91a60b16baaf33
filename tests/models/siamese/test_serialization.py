"""Save and load: equal tokens, safetensors only, adapters that PEFT alone can load."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, pipeline

import imsm
from imsm.models.backbones.loading import load_backbone
from imsm.models.builder import wrap_backbone
from imsm.models.siamese.config import SiameseConfig
from imsm.models.siamese.model import SiameseForCausalLM
from imsm.pipeline.model import build_adapter, model_kwargs
from imsm.utils.errors import UserError
from imsm.utils.manifest import write_manifest
from tests.helpers.config import config as composed_config
from tests.helpers.damage import delete, flip_bit
from tests.models.siamese.tiny import CASES, QUERY_GATE, decoded, prompts, tiny_backbone, tiny_siamese, tiny_tokenizer


def on_disk(architecture: str, tmp_path: Path) -> dict[str, str]:
    """Save the tiny backbone and return its `load_backbone` arguments."""
    folder = tmp_path / "backbone"
    tiny_backbone(architecture).save_pretrained(folder)
    return {"name_or_path": str(folder), "dtype": "float32"}


def saved(tmp_path: Path, **arguments: object) -> tuple[SiameseForCausalLM, Path]:
    architecture = str(arguments.pop("architecture", "llama"))
    model = tiny_siamese(architecture, source=on_disk(architecture, tmp_path), **arguments)
    model.save_pretrained(tmp_path / "model")
    return model, tmp_path / "model"


@pytest.mark.parametrize(("architecture", "method"), CASES)
def test_loaded_model_generates_the_same_tokens(architecture: str, method: str, tmp_path: Path) -> None:
    model, folder = saved(tmp_path, architecture=architecture, method=method)
    again = SiameseForCausalLM.from_pretrained(folder)
    ids = torch.tensor(prompts()[:1])
    for stream in model.available_streams():
        model.stream = again.stream = stream
        query = {} if stream != "interwoven" else {"query_mask": torch.ones_like(ids)}
        assert torch.equal(again(ids, **query).logits, model(ids, **query).logits)
        assert decoded(again, prompts()[0]) == decoded(model, prompts()[0])
    assert not any(p.requires_grad for p in again.parameters())

    written = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert written == {
        "config.json",
        "generation_config.json",
        "gate.safetensors",
        "hashes.json",
        "adapter/adapter_config.json",
        "adapter/adapter_model.safetensors",
    }
    sizes = [path.stat().st_size for path in folder.rglob("*.safetensors")]
    assert sum(sizes) < (tmp_path / "backbone" / "model.safetensors").stat().st_size / 2


@pytest.mark.parametrize(("architecture", "method"), CASES)
def test_adapter_loads_in_plain_peft(architecture: str, method: str, tmp_path: Path) -> None:
    model, folder = saved(tmp_path, architecture=architecture, method=method)
    plain = PeftModel.from_pretrained(tiny_backbone(architecture), str(folder / "adapter"))
    model.stream = "tuned"
    ids = torch.tensor(prompts()[:1])
    assert torch.equal(plain(ids).logits, model(ids).logits)
    config = json.loads((folder / "adapter" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(tmp_path / "backbone")


def test_auto_classes_and_pipeline(tmp_path: Path) -> None:
    assert imsm.SiameseForCausalLM is SiameseForCausalLM
    model, folder = saved(tmp_path)
    expected = decoded(model, prompts()[0])
    assert decoded(AutoModelForCausalLM.from_pretrained(folder), prompts()[0]) == expected
    with pytest.raises(TypeError, match="torch_type"):
        AutoModelForCausalLM.from_pretrained(folder, torch_type=torch.bfloat16)
    half = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    assert half.backbone.dtype == torch.bfloat16
    assert next(half.gate.parameters()).dtype == torch.float32

    tokenizer = tiny_tokenizer()
    tokenizer.save_pretrained(folder)
    generator = pipeline("text-generation", model=str(folder))
    text = tokenizer.decode(prompts()[0])
    answer = generator(text, max_new_tokens=8, do_sample=False, return_full_text=False)
    assert answer[0]["generated_text"].strip() == tokenizer.decode(expected)


def test_run_folder_plain_peft_and_original_model(tmp_path: Path) -> None:
    model, _ = saved(tmp_path, method="ia3", gate=None)
    assert decoded(SiameseForCausalLM.from_pretrained(tmp_path), prompts()[0]) == decoded(model, prompts()[0])
    plain = SiameseForCausalLM(
        SiameseConfig(text_config=model.backbone.config, backbone=model.config.backbone, stream="original"),
        tiny_backbone("llama"),
    )
    plain.save_pretrained(tmp_path / "original")
    again = SiameseForCausalLM.from_pretrained(tmp_path / "original")
    assert again.available_streams() == ("original",)
    assert decoded(again, prompts()[0]) == decoded(plain, prompts()[0])


def test_stream_pooling_and_generation_config_are_saved(tmp_path: Path) -> None:
    model = tiny_siamese(pooling="max", source=on_disk("llama", tmp_path))
    model.stream = "tuned"
    model.generation_config.max_new_tokens = 3
    model.save_pretrained(tmp_path / "model")
    again = SiameseForCausalLM.from_pretrained(tmp_path / "model")
    assert again.stream == "tuned" and again.config.pooling == "max"
    assert again.generate(torch.tensor(prompts()[:1])).shape[1] == 12 + 3


@pytest.mark.parametrize("method", ["ia3", "adalora"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_load_trainable(method: str, dtype: str, tmp_path: Path) -> None:
    model, folder = saved(tmp_path, method=method)
    frozen = SiameseForCausalLM.from_pretrained(folder, dtype=dtype)
    assert not any(p.requires_grad for p in frozen.parameters())
    again = SiameseForCausalLM.from_pretrained(folder, trainable=True, dtype=dtype)
    names = [{n for n, p in m.named_parameters() if p.requires_grad} for m in (model, again)]
    assert names[0] == names[1]


def test_pruned_adalora_keeps_its_scale(tmp_path: Path) -> None:
    """PEFT would remove pruned directions and scale the rest by the smaller rank."""
    model = tiny_siamese(method="adalora", source=on_disk("llama", tmp_path))
    pattern = {}
    for name, parameter in model.adapted.base_model.model.named_parameters():
        if "lora_E" in name:
            parameter.data[1::2] = 0
            pattern[name] = [True, False] * 3
    config = model.adapted.peft_config["default"]
    config.rank_pattern = pattern
    model.save_pretrained(tmp_path / "model")
    assert config.rank_pattern == pattern and not config.inference_mode
    again = SiameseForCausalLM.from_pretrained(tmp_path / "model")
    assert decoded(again, prompts()[0]) == decoded(model, prompts()[0])
    plain = PeftModel.from_pretrained(tiny_backbone("llama"), str(tmp_path / "model" / "adapter"))
    model.stream = "tuned"
    ids = torch.tensor(prompts()[:1])
    assert torch.equal(plain(ids).logits, model(ids).logits)


def edited(folder: Path, **changes: object) -> None:
    path = folder / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, **changes}))
    write_manifest(folder)  # as in a folder that somebody made


def test_damaged_adapter_is_rejected(tmp_path: Path) -> None:
    """PEFT warns at most and keeps random values."""
    _, folder = saved(tmp_path)
    file = folder / "adapter" / "adapter_model.safetensors"
    values = load_file(file)
    name = sorted(values)[0]
    save_file({key: value for key, value in values.items() if key != name}, file)
    write_manifest(folder)
    with pytest.raises(UserError, match=f"cannot be loaded .no {name}"):
        SiameseForCausalLM.from_pretrained(folder)
    file.write_bytes(b"damaged")
    write_manifest(folder)
    with pytest.raises(UserError, match="cannot be loaded"):
        SiameseForCausalLM.from_pretrained(folder)
    file.rename(file.with_suffix(".bin"))  # a pickle, which PEFT reads if there is no other file
    write_manifest(folder)
    with pytest.raises(UserError, match="cannot be loaded"):
        SiameseForCausalLM.from_pretrained(folder)
    (folder / "adapter" / "adapter_config.json").unlink()
    write_manifest(folder)
    with pytest.raises(UserError, match="cannot be loaded"):
        SiameseForCausalLM.from_pretrained(folder)


def test_gate_target_that_is_a_function_is_rejected(tmp_path: Path) -> None:
    _, folder = saved(tmp_path)
    marker = tmp_path / "called"
    edited(folder, gate={"_target_": "os.system", "command": f"touch {marker}"})
    with pytest.raises(UserError, match=r"os\.system"):
        SiameseForCausalLM.from_pretrained(folder)
    assert not marker.exists()


def test_missing_or_damaged_files_are_rejected(tmp_path: Path) -> None:
    _, folder = saved(tmp_path)
    with pytest.raises(UserError, match="holds no siamese model"):
        SiameseForCausalLM.from_pretrained(tmp_path / "backbone" / "nothing")
    edited(folder, gate={**QUERY_GATE, "rank": 2})
    with pytest.raises(UserError, match=r"gate\.safetensors"):
        SiameseForCausalLM.from_pretrained(folder)
    edited(folder, gate={**QUERY_GATE, "shape": 3})
    with pytest.raises(UserError, match=r"^gate\._target_=.*Gate: rejects"):
        SiameseForCausalLM.from_pretrained(folder)
    edited(folder, gate=QUERY_GATE)
    complete = (folder / "config.json").read_text()
    (folder / "config.json").write_text(complete[:60])
    write_manifest(folder)
    with pytest.raises(UserError, match=r"config\.json: is damaged"):
        SiameseForCausalLM.from_pretrained(folder)
    (folder / "config.json").write_text(complete)
    gate = (folder / "gate.safetensors").read_bytes()
    (folder / "gate.safetensors").write_bytes(gate[:40])
    write_manifest(folder)
    with pytest.raises(UserError, match=r"gate\.safetensors"):
        SiameseForCausalLM.from_pretrained(folder)
    (folder / "gate.safetensors").write_bytes(gate)
    (folder / "adapter").rename(folder / "elsewhere")
    write_manifest(folder)
    with pytest.raises(UserError, match="the adapter or the gate is missing"):
        SiameseForCausalLM.from_pretrained(folder)
    (folder / "elsewhere").rename(folder / "adapter")
    edited(folder, backbone={"name_or_path": str(tmp_path / "gone")})
    with pytest.raises(UserError, match="gone"):
        SiameseForCausalLM.from_pretrained(folder)


@pytest.mark.parametrize("damage", [flip_bit, delete])
def test_a_changed_or_missing_file_of_a_saved_model_is_rejected(
    tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    _, folder = saved(tmp_path)
    complete = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert len(complete) == 6
    for path, content in complete.items():
        times = path.stat()
        damage(path)
        if path.exists():  # only the content differs, as on a failing disk
            os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
        for load in (SiameseForCausalLM.from_pretrained, tiny_siamese().load_weights):
            with pytest.raises(UserError, match=r"hashes\.json|changed since|is missing|holds no") as caught:
                load(folder)
            assert path.name in str(caught.value) and "\n" not in str(caught.value)
        path.write_bytes(content)
    SiameseForCausalLM.from_pretrained(folder)


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("adapter/adapter_config.json", '"lora_alpha": ', '"lora_alpha": 9'),
        ("config.json", '"pooling": "mean"', '"pooling": "last"'),
        ("generation_config.json", '"eos_token_id": ', '"eos_token_id": 1'),
    ],
)
def test_an_edited_setting_is_no_other_model(tmp_path: Path, name: str, old: str, new: str) -> None:
    _, folder = saved(tmp_path, method="lora")
    text = (folder / name).read_text()
    assert old in text
    (folder / name).write_text(text.replace(old, new))
    with pytest.raises(UserError, match=f"{name}: changed since it was saved"):
        SiameseForCausalLM.from_pretrained(folder)
    (folder / name).write_text(text)
    SiameseForCausalLM.from_pretrained(folder)


def test_a_tokenizer_may_be_added_to_a_model_but_no_file_that_loading_reads(tmp_path: Path) -> None:
    _, folder = saved(tmp_path)
    tiny_tokenizer().save_pretrained(folder)
    SiameseForCausalLM.from_pretrained(folder)
    (folder / "adapter" / "other.safetensors").write_bytes(b"")
    with pytest.raises(UserError, match="is not one of the files that were saved"):
        SiameseForCausalLM.from_pretrained(folder)


def test_an_adapter_is_saved_with_the_same_bytes_in_every_process(tmp_path: Path) -> None:
    """PEFT writes sets, whose order depends on the process."""
    model, folder = saved(tmp_path, method="lora")
    modules = json.loads((folder / "adapter" / "adapter_config.json").read_text())["target_modules"]
    assert len(modules) > 1 and modules == sorted(modules)
    assert isinstance(model.adapted.peft_config["default"].target_modules, set)


def test_model_without_a_named_backbone_is_not_saved(tmp_path: Path) -> None:
    model = tiny_siamese()
    model.config.backbone = None
    with pytest.raises(UserError, match="backbone"):
        model.save_pretrained(tmp_path)


def test_gate_file_holds_the_gate(tmp_path: Path) -> None:
    model, folder = saved(tmp_path)
    gate = load_file(folder / "gate.safetensors")
    assert gate.keys() == {"down.weight", "up.weight"}
    assert all(torch.equal(value, model.gate.state_dict()[name]) for name, value in gate.items())


METHODS = ["lora", "dora", "ia3", "adalora", "vera", "loramoe", "prompt_tuning", "prefix_tuning"]


def new_model(peft: str, seed: int) -> SiameseForCausalLM:
    chosen = composed_config(f"peft={peft}", f"seed={seed}")
    parts = model_kwargs(chosen)
    return wrap_backbone(load_backbone(**parts["backbone"]), adapter=build_adapter(chosen), **parts)


def trainable(model: SiameseForCausalLM) -> dict[str, torch.Tensor]:
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("peft", METHODS)
def test_load_weights_restores_every_trainable_value(peft: str, tmp_path: Path) -> None:
    torch.manual_seed(1)
    trained = new_model(peft, seed=0)
    with torch.no_grad():
        for value in trainable(trained).values():
            value.add_(torch.randn_like(value))
    trained.save_pretrained(tmp_path)
    other = new_model(peft, seed=0)
    assert any(not v.equal(trainable(other)[n]) for n, v in trainable(trained).items())
    other.load_weights(tmp_path)
    assert trainable(other).keys() == trainable(trained).keys()
    for name, value in trainable(trained).items():
        assert value.equal(trainable(other)[name]), name
    assert all(value.requires_grad for value in trainable(other).values())


def test_load_weights_rejects_a_prompt_saved_without_its_encoder(tmp_path: Path) -> None:
    new_model("p_tuning", seed=0).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="lacks some of the trainable parameters"):
        new_model("p_tuning", seed=0).load_weights(tmp_path)


def test_load_weights_rejects_another_method(tmp_path: Path) -> None:
    new_model("ia3", seed=0).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="not those of the model"):
        new_model("lora", seed=0).load_weights(tmp_path)


def test_a_model_that_describes_nothing_is_rejected_in_one_line(tmp_path: Path) -> None:
    _, folder = saved(tmp_path)
    files = {name: (folder / name).read_text() for name in ("config.json", "generation_config.json")}
    complete = json.loads(files["config.json"])
    odd = {**complete["text_config"], "hidden_size": "x"}
    damaged = [
        *(("config.json", text) for text in ("{}", "[]", "null", "7", '{"a": ' + "[" * 100_000)),
        *(("config.json", json.dumps({**complete, "text_config": value})) for value in (None, {}, 3, odd)),
        *(("config.json", json.dumps({**complete, "backbone": value})) for value in (None, {}, 3)),
        *(("config.json", json.dumps({**complete, "gate": value})) for value in ("x", 3, {"rank": 8})),
        *(("config.json", json.dumps({**complete, "pooling": value})) for value in ("median", 3, ["mean"], None)),
        ("config.json", json.dumps({**complete, "_attn_implementation": "someone/kernel"})),
        *(("generation_config.json", text) for text in ("", "[]", "{", "null")),
    ]
    for name, text in damaged:
        (folder / name).write_text(text)
        write_manifest(folder)
        with pytest.raises(UserError) as caught:
            SiameseForCausalLM.from_pretrained(folder)
        assert name in str(caught.value) and "\n" not in str(caught.value), text[:80]
        (folder / name).write_text(files[name])
