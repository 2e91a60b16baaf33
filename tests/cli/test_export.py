"""`imsm export`: options, outputs and refusals; the exports have their own tests."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM

from imsm.cli.main import main
from tests.helpers.word_run import run_words


@pytest.fixture(scope="module")
def runs_root(word_files: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("runs")
    for method in ("peft", "imsm"):
        run_words(word_files, root, "trainer.num_epochs=1", method=method)
    return root


@pytest.fixture(autouse=True)
def environment(runs_root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("IMSM_RUNS", str(runs_root))
    capsys.readouterr()


def run_name(root: Path, method: str) -> str:
    (folder,) = root.glob(f"*-{method}-*")
    return folder.name


def test_merged_model_is_written_for_a_name_or_a_folder(
    runs_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name = run_name(runs_root, "peft")
    assert main(["export", name, "--merged", str(tmp_path / "merged")]) == 0
    assert f"merged: the tuned stream of {name}" in capsys.readouterr().out
    assert type(AutoModelForCausalLM.from_pretrained(tmp_path / "merged")).__name__ == "LlamaForCausalLM"
    # never over files
    assert main(["export", str(runs_root / name), "--merged", str(tmp_path / "merged")]) == 2
    assert "not an empty folder" in capsys.readouterr().err


def test_interwoven_run_needs_an_explicit_stream(
    runs_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["export", run_name(runs_root, "imsm"), "--merged", str(tmp_path / "merged")]
    assert main(command) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert "imsm serve" in error and "--stream tuned" in error
    assert not (tmp_path / "merged").exists()
    assert main([*command, "--stream", "tuned"]) == 0


def test_answers_are_written_without_loading_the_model(
    runs_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError

    monkeypatch.setattr("imsm.models.siamese.model.SiameseForCausalLM.from_pretrained", refuse)
    path = tmp_path / "new" / "answers.json"
    assert main(["export", run_name(runs_root, "imsm"), "--llm-comparator", str(path)]) == 0
    values = json.loads(path.read_text())
    assert [model["name"] for model in values["models"]] == ["original", "imsm"] and len(values["examples"]) == 8
    assert "8 examples, original and imsm" in capsys.readouterr().out
    (tmp_path / "file").touch()
    assert main(["export", run_name(runs_root, "imsm"), "--llm-comparator", str(tmp_path / "file" / "a.json")]) == 2
    assert "--llm-comparator" in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--merged", "--vllm", "--llm-comparator"])
def test_nothing_is_written_into_the_hashed_model_folder(
    runs_root: Path, option: str, capsys: pytest.CaptureFixture[str]
) -> None:
    name = run_name(runs_root, "peft")
    assert main(["export", name, option, str(runs_root / name / "model" / "new")]) == 2
    assert "is in the run's model folder" in capsys.readouterr().err
    assert not (runs_root / name / "model" / "new").exists()


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["nowhere", "--merged", "{}/m"], "run=nowhere: no finished run"),
        (["nowhere", "--llm-comparator", "{}/c.json"], "nowhere: no such folder"),
        (["nowhere", "--llm-comparator", "{}/c.json", "--dtype", "float32"], "--dtype float32: is for --merged"),
        (["nowhere", "--llm-comparator", "{}/c.json", "--stream", "tuned"], "--stream tuned: is for --merged"),
    ],
)
def test_wrong_arguments_are_one_line(
    arguments: list[str], problem: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", *(each.format(tmp_path) for each in arguments)]) == 2
    assert problem in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
