"""Adapters that PEFT alone trained and saved, imported as runs."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import snapshot_download
from peft import AdaLoraConfig, IA3Config, LoraConfig, PeftConfig, PeftModel, PrefixTuningConfig
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from imsm.config.identity import comparable_up_to_method, run_identity
from imsm.models.siamese.model import SiameseForCausalLM
from imsm.pipeline.import_adapter import ImportedRun, import_adapter
from imsm.utils.errors import UserError
from imsm.utils.manifest import verify_run_model
from imsm.utils.run_dir import RunDir, read_training
from tests.helpers.config import config
from tests.helpers.fake_hub import hub
from tests.helpers.peft_folder import save_peft_adapter
from tests.helpers.word_run import WORDS, run_words, word_overrides

LORA = "adapter_model.safetensors"
TARGETS: dict[str, Any] = {"task_type": "CAUSAL_LM", "target_modules": ["q_proj", "v_proj"]}
QUIET = ["evaluation.tasks=[webq]", "logger=none"]


@pytest.fixture(scope="module")
def lora(word_files: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a LoRA; not to be changed."""
    return save_peft_adapter(tmp_path_factory.mktemp("adapters") / "my lora", word_files / "backbone")


@pytest.fixture
def copied(lora: Path, tmp_path: Path) -> Path:
    """A copy of it that a test may change."""
    return Path(shutil.copytree(lora, tmp_path / "adapter"))


def imported(folder: Path, root: Path, *overrides: str, base: str | None = None) -> ImportedRun:
    return import_adapter(str(folder), runs_root=root, overrides=[*QUIET, *overrides], base=base)


def change(folder: Path, **values: Any) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


METHODS: dict[str, Callable[[], PeftConfig]] = {
    "lora": lambda: LoraConfig(r=4, **TARGETS),
    "rslora": lambda: LoraConfig(
        r=4, use_rslora=True, rank_pattern={"layers.0.self_attn.q_proj": 6}, alpha_pattern={"v_proj": 3}, **TARGETS
    ),
    "dora": lambda: LoraConfig(r=4, use_dora=True, **TARGETS),
    "ia3": lambda: IA3Config(
        task_type="CAUSAL_LM", target_modules=["k_proj", "v_proj", "down_proj"], feedforward_modules=["down_proj"]
    ),
    "adalora": lambda: AdaLoraConfig(init_r=6, target_r=3, total_step=10, tinit=1, tfinal=2, **TARGETS),
    "a trained norm": lambda: LoraConfig(r=4, modules_to_save=["norm"], **TARGETS),
    "prefix": lambda: PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3),
}


@pytest.mark.parametrize("name", METHODS)
def test_the_tuned_stream_generates_the_tokens_of_peft(name: str, word_files: Path, tmp_path: Path) -> None:
    backbone = word_files / "backbone"
    folder = save_peft_adapter(tmp_path / "adapter", backbone, METHODS[name]())
    run = imported(folder, tmp_path / "runs").run
    tokenizer = AutoTokenizer.from_pretrained(backbone)
    prompts = tokenizer([f"after {word} comes" for word in WORDS], return_tensors="pt")
    settings = {**prompts, "max_new_tokens": 8, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    peft = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(backbone), folder)
    model = SiameseForCausalLM.from_pretrained(run.path)
    assert model.available_streams() == ("original", "tuned")
    expected = peft.generate(**settings)
    model.stream = "tuned"
    assert torch.equal(model.generate(**settings), expected)
    with peft.disable_adapter():
        original = peft.generate(**settings) if name != "prefix" else None
    model.stream = "original"
    answers = model.generate(**settings)
    assert original is None or torch.equal(answers, original)
    assert not torch.equal(answers, expected)


def test_a_configuration_of_an_earlier_peft_means_the_same(copied: Path, tmp_path: Path) -> None:
    later = imported(copied, tmp_path).run
    kept = {"base_model_name_or_path", "peft_type", "task_type", "bias", "lora_alpha", "r", "target_modules"}
    path = copied / "adapter_config.json"
    values = {key: value for key, value in json.loads(path.read_text()).items() if key in kept}
    path.write_text(json.dumps(values | {"lora_alpha": 8.0, "loftq_config": {}, "enable_lora": None}))
    assert imported(copied, tmp_path).run == later


def test_the_run_folder_has_the_files_of_a_run(lora: Path, word_files: Path, tmp_path: Path) -> None:
    found = imported(lora, tmp_path)
    run, saved = found.run, load_file(lora / LORA)
    assert run.path == tmp_path / run.path.name and run.path.name.startswith("backbone-lora-imported-")
    assert set(verify_run_model(run)) >= {f"adapter/{LORA}", "adapter/adapter_config.json", "tokenizer.json"}
    assert (run.adapter / LORA).read_bytes() == (lora / LORA).read_bytes()
    training = read_training(run)
    assert training["imported"] == {"source": str(lora), "target": None}
    assert training["trainable_parameters"]["adapter"] == sum(value.numel() for value in saved.values())
    identity = json.loads(run.identity.read_text())
    assert identity.keys() == {"backbone", "adapter", "method"} and identity["method"] == {"stream": "tuned"}
    assert identity["backbone"]["name_or_path"] == str(word_files / "backbone")
    assert identity["backbone"]["dtype"] == "float32"  # of the base model's config.json


def test_a_second_import_loads_nothing(lora: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = imported(lora, tmp_path)
    copy = shutil.copytree(lora, tmp_path / "elsewhere" / "other name")
    monkeypatch.setattr("imsm.pipeline.import_adapter.build_model", None)
    assert imported(lora, tmp_path).run == first.run == imported(Path(copy), tmp_path).run


def test_another_adapter_at_the_same_path_is_another_run(copied: Path, tmp_path: Path) -> None:
    first = imported(copied, tmp_path)
    values = load_file(copied / LORA)
    save_file({name: value * 2 for name, value in values.items()}, copied / LORA)
    second = imported(copied, tmp_path)
    change(copied, lora_alpha=16)
    assert len({first.run.path, second.run.path, imported(copied, tmp_path).run.path}) == 3


def test_an_unfinished_import_is_repeated(lora: Path, tmp_path: Path) -> None:
    run = imported(lora, tmp_path).run
    run.trained.unlink()
    (run.adapter / LORA).write_bytes(b"half")
    assert verify_run_model(imported(lora, tmp_path).run)


def test_a_gate_is_trained_on_an_imported_adapter(lora: Path, word_files: Path, tmp_path: Path) -> None:
    found = imported(lora, tmp_path)
    overrides = [*found.backbone, f"frozen_adapter={found.run.path}", "trainer.num_epochs=1"]
    words = [text for text in word_overrides(word_files) if not text.startswith(("backbone", "trainer.num_epochs"))]
    gate = config(*words, *overrides)
    assert gate.peft.target_modules(gate.backbone) == []
    own, adapter = run_identity(gate), run_identity(found.config)
    assert own["frozen_adapter"] == adapter and gate.frozen_run is not None and gate.frozen_run.tasks == []
    assert comparable_up_to_method(own, adapter) and comparable_up_to_method(adapter, own)
    assert not comparable_up_to_method(adapter, run_identity(config(*word_overrides(word_files, method="peft"))))
    folder = run_words(word_files, tmp_path, *overrides)
    assert (RunDir(folder).adapter / LORA).read_bytes() == (lora / LORA).read_bytes()
    # the gate's run is usable in the same way
    assert config(*words, *found.backbone, f"frozen_adapter={folder}").frozen_run is not None


def test_a_frozen_adapter_needs_the_same_backbone(lora: Path, word_files: Path, tmp_path: Path) -> None:
    found = imported(lora, tmp_path)
    with pytest.raises(UserError, match=r"was trained with backbone\.dtype=float32, and this run has bfloat16"):
        config(*word_overrides(word_files, f"frozen_adapter={found.run.path}"), "backbone.dtype=bfloat16")


def test_the_base_model_is_a_shipped_option_if_one_has_its_name(
    copied: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    change(copied, base_model_name_or_path="meta-llama/Meta-Llama-3-8B")
    monkeypatch.setattr("imsm.pipeline.import_adapter._check_base", stop)
    with pytest.raises(StopIteration) as stopped:
        imported(copied, tmp_path)
    assert stopped.value.value.backbone.name == "llama3"


def test_the_command_line_names_the_base_model(copied: Path, word_files: Path, tmp_path: Path) -> None:
    change(copied, base_model_name_or_path=str(tmp_path / "gone"))
    with pytest.raises(
        UserError, match=r"base_model_name_or_path=.*gone: no such folder; give it by backbone=OPTION or"
    ):
        imported(copied, tmp_path)
    change(copied, base_model_name_or_path=None)
    with pytest.raises(UserError, match="names no base model; give it by"):
        imported(copied, tmp_path)
    backbone = str(word_files / "backbone")
    assert imported(copied, tmp_path, base=backbone).config.backbone.name_or_path == backbone
    given = ["backbone=llama3", f"backbone.name_or_path={backbone}", "backbone.dtype=float32"]
    found = imported(copied, tmp_path, *given)
    assert found.backbone == given and found.config.backbone.name == "llama3"


@pytest.mark.parametrize("text", ["peft=dora", "trainer.num_epochs=3", "method=imsm", "gate.rank=4", "seed=1"])
def test_an_override_without_effect_is_an_error(text: str, lora: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"{text}: has no effect"):
        imported(lora, tmp_path, text)


def test_only_two_files_are_downloaded_from_the_hub(
    copied: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("adapter_model.bin", "code.py", "tokenizer.json", "checkpoint-5/adapter_model.safetensors"):
        (copied / name).parent.mkdir(exist_ok=True)
        (copied / name).write_bytes(b"unwanted")
    with hub(models={"owner/lora": copied}, datasets={}) as served:
        download = partial(snapshot_download, endpoint=served.url, cache_dir=tmp_path / "cache")
        monkeypatch.setattr("imsm.pipeline.import_adapter.snapshot_download", download)
        found = import_adapter("owner/lora", runs_root=tmp_path, overrides=QUIET)
    assert {Path(name).name for name in served.fetched} == {"adapter_config.json", LORA}
    assert found.config.imported is not None and found.config.imported.source == "owner/lora"
    assert found.run.path == imported(copied, tmp_path).run.path


def test_a_hub_id_is_one_line_without_a_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(
        UserError, match=r"^owner/nothing: is neither a folder nor in the local Hub cache.*hf download"
    ):
        import_adapter("owner/nothing", runs_root=tmp_path)


def stop(adapter: Any, run_config: Any) -> None:
    raise StopIteration(run_config)
