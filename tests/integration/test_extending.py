"""docs/extending.md: the files it shows, written to a folder, work together in one run."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

from imsm.config.compose import ConfigComposer
from imsm.config.validate import load_config
from imsm.pipeline.data import load_eval_sets, load_run_tokenizer, tokenized_training_set
from imsm.pipeline.run import run_experiment
from imsm.utils import trust
from tests.helpers.cli import imsm_run
from tests.helpers.paths import ROOT
from tests.helpers.tiny_backbone import save_backbone

DOCUMENT = ROOT / "docs" / "extending.md"
COUNTRIES = {"Lesotho": "Maseru", "Togo": "Lome", "Palau": "Melekeok", "Qatar": "Doha"}
CHOICES = ["backbone=my_model", "data=capitals", "peft=rslora", "gate=squashed"]


def documented_files() -> dict[str, str]:
    """Return the files in the document by name."""
    return dict(re.findall(r"^File `([^`]+)`:\n\n```\w+\n(.*?)^```$", DOCUMENT.read_text(), re.M | re.S))


@pytest.fixture
def config_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Write the documented files, with a tiny model and tiny data in place of those on the Hub."""
    folder = tmp_path / "my_conf"
    # each test has its own folder, whose modules have the names of the previous test's
    monkeypatch.setattr(trust, "_trusted_folders", [])
    for name in documented_files():
        monkeypatch.delitem(sys.modules, Path(name).stem, raising=False)
    for name, text in documented_files().items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    texts = [f"country: {country}\ncapital:{capital} {capital}" for country, capital in COUNTRIES.items()]
    backbone = save_backbone(tmp_path / "model", texts=texts)
    path = folder / "backbone" / "my_model.yaml"
    path.write_text(path.read_text().replace("somebody/my-model", str(backbone)))
    data = tmp_path / "mirror" / "somebody" / "capitals"
    data.mkdir(parents=True)
    rows = [{"country": country, "capital": capital} for country, capital in COUNTRIES.items()]
    for split in ("train", "test"):
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (data / f"{split}-00000-of-00001.jsonl").write_text(text)
    (data / "README.md").write_text(
        "---\nconfigs:\n- config_name: default\n  data_files:\n"
        "  - split: train\n    path: train-*\n  - split: test\n    path: test-*\n---\n"
    )
    return folder


def run_command(config_dir: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "imsm.run", "--config-dir", str(config_dir), *arguments],
        capture_output=True,
        text=True,
        cwd=config_dir.parent,
        env={**os.environ, "IMSM_RUNS": str(config_dir.parent / "runs")},
        timeout=300,
    )


def test_the_document_shows_one_file_of_each_kind() -> None:
    assert set(documented_files()) == {
        "data/capitals.yaml", "capitals.py",
        "metric/prefix.yaml", "prefix.py",
        "peft/rslora.yaml",
        "peft/scaling.yaml", "scaling.py",
        "gate/squashed.yaml", "squashed.py",
        "backbone/my_model.yaml",
    }  # fmt: skip


def test_all_five_run_together(config_dir: Path) -> None:
    arguments = [
        *CHOICES, f"data.mirror_dir={config_dir.parent / 'mirror'}", "evaluation.tasks=[target]",
        "trainer.num_epochs=30", "trainer.learning_rate=0.03", "trainer.global_batch_size=4",
        "logger=none",
    ]  # fmt: skip
    done = run_command(config_dir, *arguments)
    assert done.returncode == 0, done.stderr
    (path,) = (config_dir.parent / "runs").glob("my_model-rslora-capitals-imsm-squashed*/result.json")
    entry = json.loads(path.read_text())["evaluation"]["tasks"]["capitals"]
    (predictions,) = (path.parent / "evaluation").glob("capitals-*/predictions.jsonl")
    rows = [json.loads(line) for line in predictions.read_text().splitlines()]
    assert sorted(row["references"] for row in rows) == sorted([capital] for capital in COUNTRIES.values())
    correct = [row["answer"].startswith(row["references"][0]) for row in rows]
    assert entry["metrics"]["prefix"] == 100 * sum(correct) / len(correct)
    assert list(entry["metrics"]) == ["prefix", "exact_match"]
    losses = [json.loads(line)["loss"] for line in (path.parent / "log.jsonl").open() if "loss" in line]
    assert losses[-1] < losses[0] - 0.1
    assert set(load_file(path.parent / "model" / "gate.safetensors")) == {"down.weight", "up.weight"}
    assert "prefix" in (path.parent / "report.md").read_text()


TOWNS = {"Brivi": "Eldan", "Eldan": "Brivi"}


@pytest.mark.parametrize("backbone", [pytest.param("my_model", marks=pytest.mark.slow), "mini"])
def test_a_custom_module_reads_a_local_folder(
    config_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, backbone: str
) -> None:
    monkeypatch.setattr(sys, "path", [*sys.path])
    trust.trust_folder(config_dir)
    pairs = COUNTRIES if backbone == "my_model" else TOWNS
    if backbone == "mini":  # its vocabulary has no word "country"
        module = config_dir / "capitals.py"
        module.write_text(module.read_text().replace("country: {", "Where is {").replace("capital:", "Answer:"))
    # input and output are no prompt here, but further keys of the module's records
    rows = [{"country": key, "capital": value, "input": "a", "output": "b"} for key, value in pairs.items()]
    folder = tmp_path / "local"
    folder.mkdir()
    for role in ("train", "test"):
        (folder / f"{role}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    overrides = [
        f"backbone={backbone}", "data=capitals", f"data.local_dir={folder}", "evaluation.tasks=[target]",
        "trainer.num_epochs=1", "trainer.global_batch_size=4", "logger=none", "hidden_state_cache=off",
    ]  # fmt: skip
    composer = ConfigComposer(config_dir)
    assert composer.validate(overrides, sweep=False) == []
    run_config = load_config(composer.compose(overrides), config_dir=config_dir)
    expected = [[capital] for capital in pairs.values()]
    tokenizer = load_run_tokenizer(run_config)
    assert len(tokenized_training_set(run_config, tokenizer)[0]) == len(pairs)
    examples = load_eval_sets(run_config, tokenizer)["capitals"].examples
    assert [list(example.golds) for example in examples] == expected
    if backbone == "mini":
        return
    run_experiment(run_config, runs_root=tmp_path / "runs")
    (predictions,) = (tmp_path / "runs").glob("*-capitals-*/evaluation/capitals-*/predictions.jsonl")
    found = [json.loads(line) for line in predictions.read_text().splitlines()]
    assert [row["id"] for row in found] == [f"capitals/test/{number}" for number in range(len(pairs))]
    assert [row["references"] for row in found] == expected


def test_the_gate_dropout_of_a_recipe_does_not_reach_a_gate_without_dropout(
    config_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(config_dir))
    composer = ConfigComposer(config_dir)
    overrides = ["backbone=my_model", "gate=squashed", "data.source=miniature"]
    assert composer.validate([*overrides, "trainer=paper_code"], sweep=False) == []
    (line,) = composer.validate([*overrides, "+gate.dropout=0.1"], sweep=False)
    assert "no such key of gate" in line


@pytest.mark.parametrize(
    ("override", "problem"),
    [
        ("peft.lora_alpa=4", "did you mean peft.lora_alpha=4"),
        ("peft.r=zero", "must be a whole number"),
        ("peft.r=0", "peft.r=0"),
        ("gate.lowest=1", "did you mean gate.low=1"),
        ("data=capital", "did you mean data=capitals"),
        ("data.metric=prefx", "prefix"),
    ],
)
def test_custom_options_are_validated(
    config_dir: Path, override: str, problem: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(config_dir))
    choices = [choice for choice in CHOICES if choice.partition("=")[0] != override.partition("=")[0]]
    overrides = [*choices, override, f"data.mirror_dir={config_dir.parent / 'mirror'}", "evaluation.tasks=[target]"]
    (line,) = ConfigComposer(config_dir).validate(overrides, sweep=False)
    assert problem in line


def test_a_registered_method_is_validated_by_its_fields(config_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(config_dir))
    composer = ConfigComposer(config_dir)
    overrides = ["backbone=my_model", "peft=scaling", "data.source=miniature"]
    assert composer.validate(overrides, sweep=False) == []
    (line,) = composer.validate([*overrides, "peft.start=high"], sweep=False)
    assert "peft.start" in line


def test_an_invalid_custom_argument_ends_the_command_with_exit_code_2(
    config_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    mirror = f"data.mirror_dir={config_dir.parent / 'mirror'}"
    assert imsm_run(monkeypatch, "--config-dir", str(config_dir), *CHOICES, "gate.lowest=1", mirror) == 2
    error = capsys.readouterr().err
    assert "did you mean gate.low=1" in error
    assert "Traceback" not in error
