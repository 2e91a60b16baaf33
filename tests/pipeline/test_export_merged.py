"""Export as a plain model: equal logits without imsm, complete or nothing, clear refusals."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, PreTrainedModel

from imsm.models.siamese.model import SiameseForCausalLM
from imsm.pipeline.export_merged import export_merged, with_earlier_keys
from imsm.utils.errors import RunError, UserError
from imsm.utils.run_dir import RunDir
from tests.helpers.word_run import run_words

FILES = ["config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"]
TOKENS = torch.tensor([[4, 5, 6, 7, 5, 9]])


@pytest.fixture(scope="module")
def runs(word_files: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("runs")
    return {
        method: run_words(word_files, root, "trainer.num_epochs=1", "trainer.learning_rate=0.3", method=method)
        for method in ("peft", "imsm")
    }


@torch.no_grad()
def logits(model: PreTrainedModel) -> torch.Tensor:
    return model(input_ids=TOKENS).logits


@pytest.mark.parametrize(("method", "stream"), [("peft", None), ("imsm", "tuned")])
def test_transformers_alone_loads_a_model_with_the_tuned_streams_logits(
    runs: dict[str, Path], tmp_path: Path, method: str, stream: str | None
) -> None:
    check = export_merged(RunDir(runs[method]), tmp_path / "new" / "merged", stream=stream)
    model = SiameseForCausalLM.from_pretrained(runs[method])
    model.stream = "tuned"
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "new" / "merged")
    torch.testing.assert_close(logits(plain), logits(model), rtol=1e-4, atol=1e-4)
    model.stream = "original"
    assert not torch.allclose(logits(plain), logits(model), atol=1e-2)
    assert check.kl < 1e-5 and check.equal == check.positions > 10 and check.dtype == "float32"
    assert sorted(path.name for path in (tmp_path / "new" / "merged").iterdir()) == FILES
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["merged"]
    assert len({path.stat().st_mode for path in (tmp_path / "new" / "merged").iterdir()}) == 1
    assert plain.generation_config.eos_token_id == 2


def test_config_is_the_backbones_own_and_names_no_path(
    runs: dict[str, Path], word_files: Path, tmp_path: Path
) -> None:
    export_merged(RunDir(runs["peft"]), tmp_path / "merged")
    config = json.loads((tmp_path / "merged" / "config.json").read_text())
    own = json.loads((word_files / "backbone" / "config.json").read_text())
    assert config == own | {"torch_dtype": "float32", "rope_theta": own["rope_parameters"]["rope_theta"]}
    # a later class name would stop earlier versions of transformers
    assert json.loads((tmp_path / "merged" / "tokenizer_config.json").read_text())["tokenizer_class"] == (
        "PreTrainedTokenizerFast"
    )
    for name in FILES:
        assert str(word_files).encode() not in (tmp_path / "merged" / name).read_bytes()
    for text in ("after red comes", " blue"):
        own = AutoTokenizer.from_pretrained(word_files / "backbone")(text).input_ids
        assert AutoTokenizer.from_pretrained(tmp_path / "merged")(text).input_ids == own


@pytest.mark.parametrize(
    "rope",
    [
        {"rope_type": "default", "rope_theta": 500000.0},
        {
            "rope_type": "llama3",
            "rope_theta": 500000.0,
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        },
    ],
)
def test_earlier_keys_do_not_change_the_configuration(rope: dict[str, object]) -> None:
    values = LlamaConfig(rope_parameters=rope, dtype="bfloat16").to_dict()
    added = with_earlier_keys(values)
    assert added["rope_theta"] == 500000.0 and added["torch_dtype"] == "bfloat16"
    assert ("rope_scaling" in added) == (rope["rope_type"] == "llama3")
    read = LlamaConfig.from_dict(added)
    assert read.rope_parameters == values["rope_parameters"] and read.dtype == torch.bfloat16
    # a file of transformers 4 keeps its own keys
    old = {"dtype": "float32", "rope_theta": 1e6, "rope_scaling": None}
    assert with_earlier_keys(old) == old | {"torch_dtype": "float32"}


def test_another_type_of_the_weights_is_written(runs: dict[str, Path], tmp_path: Path) -> None:
    check = export_merged(RunDir(runs["peft"]), tmp_path / "merged", dtype="bfloat16")
    assert check.dtype == "bfloat16"
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "merged").dtype == torch.bfloat16


def test_chat_template_is_kept_only_where_the_run_used_it(runs: dict[str, Path], tmp_path: Path) -> None:
    for used in (False, True):
        run = RunDir(shutil.copytree(runs["peft"], tmp_path / f"run-{used}"))
        # as a model without a training's hashes, so that its files can be changed here
        run.trained.unlink()
        (run.model / "chat_template.jinja").write_text("{{ messages[0]['content'] }}")
        identity = json.loads(run.identity.read_text())
        identity["backbone"]["chat_template"] = used
        run.identity.write_text(json.dumps(identity))
        export_merged(run, tmp_path / f"merged-{used}")
        assert (AutoTokenizer.from_pretrained(tmp_path / f"merged-{used}").chat_template is not None) is used


def test_sentencepiece_vocabulary_of_the_backbone_is_copied(
    runs: dict[str, Path], word_files: Path, tmp_path: Path
) -> None:
    path = word_files / "backbone" / "tokenizer.model"
    try:
        path.write_bytes(b"vocabulary")
        run = RunDir(shutil.copytree(runs["peft"], tmp_path / "run"))
        run.inputs.unlink()  # its hash of the backbone has no such file
        export_merged(run, tmp_path / "merged")
    finally:
        path.unlink()
    assert (tmp_path / "merged" / "tokenizer.model").read_bytes() == b"vocabulary"


def test_interwoven_run_is_refused_with_the_alternatives(runs: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"imsm serve .* --vllm DIR.* --stream tuned") as error:
        export_merged(RunDir(runs["imsm"]), tmp_path / "merged")
    assert "\n" not in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_methods_that_cannot_be_merged_are_refused(word_files: Path, tmp_path: Path) -> None:
    run = run_words(word_files, tmp_path, "peft=prompt_tuning", "trainer.num_epochs=1", method="peft")
    with pytest.raises(UserError, match=r"PROMPT_TUNING cannot be merged .*imsm serve"):
        export_merged(RunDir(run), tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


def test_backbone_that_is_no_class_of_transformers_is_refused(
    runs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("transformers.LlamaForCausalLM.__module__", "imsm.models.backbones.other")
    with pytest.raises(UserError, match=r"is not a class of transformers.*imsm serve"):
        export_merged(RunDir(runs["peft"]), tmp_path / "merged")


def test_changed_files_are_refused(runs: dict[str, Path], word_files: Path, tmp_path: Path) -> None:
    run = RunDir(shutil.copytree(runs["peft"], tmp_path / "run"))
    weights = run.adapter / "adapter_model.safetensors"
    original = weights.read_bytes()
    weights.write_bytes(original[:-1] + bytes([original[-1] ^ 1]))
    with pytest.raises(UserError, match="changed since it was saved"):
        export_merged(run, tmp_path / "merged")
    weights.write_bytes(original)
    path = word_files / "backbone" / "generation_config.json"
    text = path.read_text()
    try:
        path.write_text(text.replace("{", "{ ", 1))
        with pytest.raises(UserError, match=r"backbone .* changed since the run was trained"):
            export_merged(run, tmp_path / "merged")
    finally:
        path.write_text(text)
    assert not (tmp_path / "merged").exists()


def test_wrong_merge_is_an_error(runs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def without_adapter(model: SiameseForCausalLM) -> PreTrainedModel:
        model.stream = "original"
        return merge(model)

    merge = SiameseForCausalLM.merge_and_unload
    monkeypatch.setattr(SiameseForCausalLM, "merge_and_unload", without_adapter)
    with pytest.raises(RunError, match="the merged model differs from the tuned stream"):
        export_merged(RunDir(runs["peft"]), tmp_path / "merged")
    assert list(tmp_path.iterdir()) == []
