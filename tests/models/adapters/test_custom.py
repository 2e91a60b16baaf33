"""Methods registered with PEFT: attached, saved, and imported again when their adapter is loaded."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from peft import PeftConfig

from imsm.models.adapters.base import adapter_from_config, attach_adapter
from imsm.models.adapters.custom import import_custom_method
from imsm.models.siamese.model import SiameseForCausalLM
from imsm.utils import trust
from imsm.utils.errors import UserError
from tests.integration.test_extending import documented_files
from tests.models.siamese.tiny import decoded, prompts, tiny_backbone, tiny_siamese


@pytest.fixture(scope="module")
def module(tmp_path_factory: pytest.TempPathFactory):  # type: ignore[no-untyped-def]
    """A module outside imsm that registers a method; PEFT can register a name only once in a process."""
    folder = tmp_path_factory.mktemp("conf")
    write_method(folder, "early")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "path", list(sys.path))
        patch.setattr(trust, "_trusted_folders", [])
        trust.trust_folder(folder)
        yield "early"


def write_method(folder: Path, name: str) -> None:
    """Write the documented method as ``<folder>/<name>.py``, registered as ``name``."""
    source = documented_files()["scaling.py"]
    (folder / f"{name}.py").write_text(source.replace('"scaling"', f'"{name}"').replace("scaling_f", f"{name}_f"))


def test_a_saved_model_generates_the_same_tokens(module: str, tmp_path: Path) -> None:
    tiny_backbone("llama").save_pretrained(tmp_path / "backbone")
    adapter = adapter_from_config(f"{module}.ScalingConfig", {"start": 1.0}, ["q_proj", "down_proj"])
    source = {"name_or_path": str(tmp_path / "backbone"), "dtype": "float32"}
    model = tiny_siamese("llama", adapter, source=source)
    model.save_pretrained(tmp_path / "model")
    saved = json.loads((tmp_path / "model" / "adapter" / "adapter_config.json").read_text())
    assert (saved["peft_type"], saved["python_module"], saved["start"]) == ("EARLY", module, 1.0)
    again = SiameseForCausalLM.from_pretrained(tmp_path / "model")
    for stream in model.available_streams():
        model.stream = again.stream = stream
        assert decoded(again, prompts()[0]) == decoded(model, prompts()[0])


def test_the_original_stream_is_the_backbone(module: str) -> None:
    model = tiny_siamese(
        "llama", adapter_from_config(f"{module}.ScalingConfig", {"start": 2.0}, ["q_proj"]), gate=None
    )
    ids = torch.tensor(prompts()[:1])
    model.stream = "original"
    assert torch.equal(model(ids).logits, tiny_backbone("llama")(ids).logits)


def test_its_fields_are_checked_and_only_linear_layers_are_targets(module: str) -> None:
    with pytest.raises(UserError, match="Config"):
        adapter_from_config(f"{module}.ScalingConfig", {"stat": 2.0}, ["q_proj"])
    backbone = tiny_backbone("llama")
    with pytest.raises(UserError, match="LlamaMLP"):
        attach_adapter(adapter_from_config(f"{module}.ScalingConfig", {}, ["q_proj", "mlp"]), backbone)
    assert "Linear" in type(backbone.model.layers[0].self_attn.q_proj).__name__


def test_loading_imports_the_module_that_registers_the_method(tmp_path: Path, monkeypatch) -> None:
    write_method(tmp_path, "late")
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(trust, "_trusted_folders", [])
    trust.trust_folder(tmp_path)
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "LATE", "python_module": "late"}))
    import_custom_method(tmp_path)
    assert type(PeftConfig.from_pretrained(str(tmp_path))).__module__ == "late"
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "OTHER", "python_module": "late"}))
    with pytest.raises(ValueError, match="late does not register"):
        import_custom_method(tmp_path)
