"""`imsm evaluate`: an adapter that PEFT alone trained, and a finished run again."""

from __future__ import annotations

import json
import shutil
import warnings
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from imsm.cli.main import main
from imsm.evaluation.result import read_result
from imsm.models.backbones.loading import resolve_path
from imsm.models.siamese.model import SiameseForCausalLM
from tests.helpers.peft_folder import save_peft_adapter
from tests.helpers.word_run import WORDS, run_words


@pytest.fixture(scope="module")
def adapter(word_files: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_peft_adapter(tmp_path_factory.mktemp("adapters") / "lora", word_files / "backbone")


@pytest.fixture(scope="module")
def words(word_files: Path) -> list[str]:
    data = [
        "--target",
        "jsonl",
        f"data.local_dir={word_files / 'data'}",
        "data.metric=contain",
        "data.max_new_tokens=3",
    ]
    return [*data, "evaluation.tasks=[target]", "logger=none"]


@pytest.fixture(scope="module")
def root(adapter: Path, words: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The runs' folder with an evaluated adapter."""
    root = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("IMSM_RUNS", str(root))
        assert main(["evaluate", str(adapter), *words]) == 0
    return root


@pytest.fixture
def run(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The run in a copy of that folder."""
    shutil.copytree(root, tmp_path, dirs_exist_ok=True)
    monkeypatch.setenv("IMSM_RUNS", str(tmp_path))
    return next(tmp_path.glob("*-imported-*"))


def test_the_result_has_the_answers_of_peft_and_no_training(run: Path, adapter: Path, word_files: Path) -> None:
    backbone = word_files / "backbone"
    tokenizer = AutoTokenizer.from_pretrained(backbone)
    prompts = tokenizer([f"after {word} comes" for word in WORDS], return_tensors="pt")
    peft = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(backbone), adapter)
    tokens = peft.generate(**prompts, max_new_tokens=3, do_sample=False)[:, prompts["input_ids"].shape[1] :]
    answers = dict(zip(WORDS, tokenizer.batch_decode(tokens, skip_special_tokens=True), strict=True))
    (file,) = run.glob("evaluation/**/predictions.jsonl")
    for line in map(json.loads, file.read_text().splitlines()):
        assert line["response"] == answers[line["prompt"].split()[1]]
    result = read_result(run)
    assert result["training"] is None and result["method"] == "peft"
    entry = result["evaluation"]["tasks"]["jsonl"]
    assert entry["role"] == "target" and entry["trained_on"] and entry["contamination"]["count"] == 0


def test_the_report_says_imported_adapter(run: Path, adapter: Path) -> None:
    text = (run / "report.md").read_text()
    assert "Imported adapter (lora) on jsonl" in text and f"imported adapter ({adapter})" in text
    assert "trained on jsonl" not in text and "recipe" not in text and "seed 0" not in text


def test_a_second_evaluation_generates_nothing(
    run: Path, adapter: Path, words: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = read_result(run)
    monkeypatch.setattr(SiameseForCausalLM, "from_pretrained", None)
    assert main(["evaluate", str(adapter), *words]) == 0
    assert main(["evaluate", run.name, "engine=single"]) == 0
    after = read_result(run)
    assert after["fingerprints"] == before["fingerprints"]
    assert after["evaluation"]["tasks"] == before["evaluation"]["tasks"]


@pytest.mark.parametrize(
    "command",
    [
        ["report"],
        ["generate", "after red comes", "--stream", "tuned"],
        ["baselines", "--baselines", "adapter_scale,logit_mix", "--values", "0.5"],
        ["predictions", "--output", "table.csv"],
        ["push", "a/b", "--dry-run"],
    ],
    ids=lambda command: command[0],
)
def test_other_commands_take_the_run(
    command: list[str], run: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    name, *arguments = command
    assert main([name, run.name, *arguments]) == 0
    assert capsys.readouterr().out


def test_the_model_card_claims_no_training(run: Path, tmp_path: Path) -> None:
    from imsm.cli.push import collect_files

    (tmp_path / "sent").mkdir()
    collect_files(run, tmp_path / "sent")
    card = (tmp_path / "sent" / "README.md").read_text()
    assert "an adapter that was trained elsewhere" in card and "Unknown: the adapter was trained elsewhere" in card
    assert str(tmp_path) not in card and "steps on" not in card


def test_without_a_target_every_task_is_a_forgetting_test(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("IMSM_RUNS", str(tmp_path / "runs"))
    base = resolve_path("imsm:miniature")
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        adapted = LoraConfig(task_type="CAUSAL_LM", r=2, init_lora_weights=False, target_modules=["q_proj"])
        model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), adapted)
        model.peft_config["default"].base_model_name_or_path = "imsm:miniature"
        model.save_pretrained(tmp_path / "lora", save_embedding_layers=False)
    assert main(["evaluate", str(tmp_path / "lora"), "evaluation.limit=2", "evaluation.tasks=[gsm8k,webq]"]) == 0
    (run,) = (tmp_path / "runs").glob("mini-lora-imported-*")
    tasks = read_result(run)["evaluation"]["tasks"]
    assert list(tasks) == ["gsm8k", "webq"]
    assert all(entry["role"] == "forgetting" and not entry["trained_on"] for entry in tasks.values())
    assert "Imported adapter (lora)\n" in (run / "report.md").read_text()
    assert main(["evaluate", str(tmp_path / "lora"), "evaluation=target"]) == 2
    assert "no task is known as the target; give --target NAME" in capsys.readouterr().err


@pytest.mark.slow
def test_a_trained_run_is_evaluated_again_with_other_settings(
    word_files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("IMSM_RUNS", str(tmp_path))
    folder = run_words(word_files, tmp_path, "trainer.num_epochs=1")
    assert main(["evaluate", str(folder), "evaluation.limit=2"]) == 0
    result = read_result(folder)
    assert result["evaluation"]["tasks"]["jsonl"]["num_examples"] == 2
    assert result["training"]["steps"] == 2 and result["method"] == "imsm" and result["config"]["run_dir"] is None
    moved = folder.rename(tmp_path / "moved")
    assert main(["evaluate", str(moved), "evaluation.limit=3"]) == 0
    assert read_result(moved)["evaluation"]["tasks"]["jsonl"]["num_examples"] == 3
    folder = moved
    capsys.readouterr()
    for given in (["data=gsm8k"], ["seed=3"], ["--target", "gsm8k"], ["--base", "x"]):
        assert main(["evaluate", str(folder), *given]) == 2
        assert len(capsys.readouterr().err.strip().splitlines()) == 1


def test_what_is_neither_a_run_nor_an_adapter_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("IMSM_RUNS", str(tmp_path / "runs"))
    (tmp_path / "file").write_text("")
    for name, problem in {
        str(tmp_path): "contains no adapter",
        str(tmp_path / "gone"): "no such folder, no finished run and no Hub id",
        str(tmp_path / "file"): "is a file",
        "a b": "no such folder",
    }.items():
        assert main(["evaluate", name]) == 2
        error = capsys.readouterr().err
        assert problem in error and len(error.strip().splitlines()) == 1
