"""docs/extending.md: its files, written to a folder of one's own, are what one run is made of."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.paths import ROOT
from tests.helpers.tiny_backbone import save_backbone

DOCUMENT = ROOT / "docs" / "extending.md"
COUNTRIES = {"Lesotho": "Maseru", "Togo": "Lome", "Palau": "Melekeok", "Qatar": "Doha"}


def documented_files() -> dict[str, str]:
    """The files that the document shows, by name."""
    blocks = re.findall(r"^File `([^`]+)`:\n\n```\w+\n(.*?)^```$", DOCUMENT.read_text(), re.M | re.S)
    return dict(blocks)


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """A folder of one's own as documented; a tiny model and tiny data where it names a hub's."""
    folder = tmp_path / "my_conf"
    for name, text in documented_files().items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    texts = [f"country: {c}\ncapital:{t} {t}" for c, t in COUNTRIES.items()]
    backbone = save_backbone(tmp_path / "model", texts=texts)
    path = folder / "backbone" / "my_model.yaml"
    path.write_text(path.read_text().replace("somebody/my-model", str(backbone)))
    data = tmp_path / "mirror" / "somebody" / "capitals"
    data.mkdir(parents=True)
    rows = [{"country": c, "capital": t} for c, t in COUNTRIES.items()]
    for split in ("train", "test"):
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (data / f"{split}-00000-of-00001.jsonl").write_text(text)
    (data / "README.md").write_text(
        "---\nconfigs:\n- config_name: default\n  data_files:\n"
        "  - split: train\n    path: train-*\n  - split: test\n    path: test-*\n---\n"
    )
    return folder


def command(own: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "imsm.run", "--config-dir", str(own), *arguments],
        capture_output=True,
        text=True,
        cwd=own.parent,
        env={**os.environ, "IMSM_RUNS": str(own.parent / "runs")},
        timeout=300,
    )


def test_the_document_shows_one_of_each() -> None:
    assert set(documented_files()) == {
        "data/capitals.yaml", "capitals.py",
        "metric/prefix.yaml", "prefix.py",
        "peft/rslora.yaml",
        "gate/squashed.yaml", "squashed.py",
        "backbone/my_model.yaml",
    }  # fmt: skip


def test_all_five_run_together(own: Path) -> None:
    arguments = [
        "backbone=my_model", "data=capitals", "peft=rslora", "gate=squashed",
        f"data.mirror_dir={own.parent / 'mirror'}", "evaluation.tasks=[target]",
        "trainer.num_epochs=30", "trainer.learning_rate=0.03", "trainer.global_batch_size=4",
        "logger=none",
    ]  # fmt: skip
    done = command(own, *arguments)
    assert done.returncode == 0, done.stderr
    (path,) = (own.parent / "runs").glob("my_model-rslora-capitals-imsm-squashed*/result.json")
    result = json.loads(path.read_text())
    entry = result["evaluation"]["tasks"]["capitals"]
    (answers,) = (path.parent / "evaluation").glob("capitals-*/predictions.jsonl")
    rows = [json.loads(line) for line in answers.read_text().splitlines()]
    assert sorted(row["references"] for row in rows) == sorted([capital] for capital in COUNTRIES.values())
    right = [row["answer"].startswith(row["references"][0]) for row in rows]
    assert entry["metrics"]["prefix"] == 100 * sum(right) / len(right)
    assert list(entry["metrics"]) == ["prefix", "exact_match"]
    losses = [json.loads(line)["loss"] for line in (path.parent / "log.jsonl").open() if "loss" in line]
    assert losses[-1] < losses[0] - 0.1
    from safetensors.torch import load_file

    assert set(load_file(path.parent / "model" / "gate.safetensors")) == {"down.weight", "up.weight"}
    assert "prefix" in (path.parent / "report.md").read_text()


def test_the_released_recipe_reaches_a_gate_without_dropout(own: Path, monkeypatch) -> None:
    from imsm.config.compose import ConfigComposer

    monkeypatch.syspath_prepend(str(own))
    checks = ConfigComposer(own)
    given = ["backbone=my_model", "gate=squashed", "data.source=miniature"]
    assert checks.validate([*given, "trainer=paper_code"], sweep=False) == []
    (line,) = checks.validate([*given, "+gate.dropout=0.1"], sweep=False)
    assert "no such key of gate" in line


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("peft.lora_alpa=4", "did you mean peft.lora_alpha=4"),
        ("peft.r=zero", "must be a whole number"),
        ("peft.r=0", "peft.r=0"),
        ("gate.lowest=1", "did you mean gate.low=1"),
        ("data=capital", "did you mean data=capitals"),
        ("data.metric=prefx", "prefix"),
    ],
)
def test_options_of_ones_own_are_checked_like_the_shipped_ones(own: Path, override: str, message: str) -> None:
    chosen = ["backbone=my_model", "data=capitals", "peft=rslora", "gate=squashed"]
    chosen = [c for c in chosen if c.partition("=")[0] != override.partition("=")[0]]
    done = command(own, *chosen, override, f"data.mirror_dir={own.parent / 'mirror'}")
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr
