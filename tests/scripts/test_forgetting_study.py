"""Tests of the study of forgetting: its shipped files, and a small study from the runs to the tables."""

import json
import shutil
from pathlib import Path

import pandas
import pytest

from imsm.config.compose import ConfigComposer
from imsm.evaluation.result import read_result
from imsm.utils.errors import UserError
from imsm.utils.paths import checkout
from scripts import forgetting_study as study

ROOT = checkout()
assert ROOT is not None
FOLDERS = sorted(path.parent for path in ROOT.glob("experiments/*/study.yaml"))
SMALL = """
title: Small
overrides: [backbone=mini, data=gsm8k, data.max_train_examples=16, evaluation.limit=6, logger=none]
training: [trainer.num_epochs=1, "evaluation.tasks=[target,webq]"]
baselines: {adapter_scale: "0.5"}
variants:
  - {label: PEFT, overrides: [method=peft], baselines: [adapter_scale]}
  - {label: slow PEFT, overrides: [method=peft, trainer.learning_rate=1e-5]}
  - {label: gate, fitted_on: PEFT, overrides: [trainer.num_epochs=1, rehearsal.num_texts=8]}
"""


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_shipped_studies_are_valid(folder: Path) -> None:
    found = study.load_study(folder)
    composer = ConfigComposer()
    for variant in found.variants:
        fitted = ["method=imsm", "rehearsal=self", *variant.overrides]
        own = fitted if variant.fitted_on else [*found.overrides, *study.training_overrides(found, variant)]
        assert composer.validate(own, sweep=False) == []
    assert [task for task in found.harness if not (folder / "harness" / f"{task}.yaml").is_file()] == []


@pytest.mark.slow
def test_small_study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("IMSM_RUNS", str(tmp_path / "runs"))
    folder = tmp_path / "study"
    folder.mkdir()
    (folder / "study.yaml").write_text(SMALL, encoding="utf-8")
    study.main([str(folder), "--seeds", "1"])
    table = pandas.read_csv(folder / "table.csv")
    variants = ["original", "PEFT", "PEFT: adapter scale 0.5", "slow PEFT", "gate"]
    assert set(variants) <= set(table["variant"])
    # the scores are the means of the runs' own
    runs = [read_result(path.parent) for path in (tmp_path / "runs").glob("*-peft-s?-*/result.json")]
    slow = [run for run in runs if run["config"]["trainer"]["learning_rate"] == 1e-5]
    assert sorted(run["config"]["seed"] for run in slow) == [0]
    for task, metric in (("gsm8k", "gsm8k_accuracy"), ("webq", "contain")):
        row = table[(table["variant"] == "slow PEFT") & (table["task"] == task)].iloc[0]
        assert row["score"] == pytest.approx(slow[0]["evaluation"]["tasks"][task]["metrics"][metric])
    text = (folder / "table.md").read_text(encoding="utf-8")
    assert "| slow PEFT" in text
    assert "Recommended: " in text and "mini-lora" not in text
    assert (folder / "tradeoff.png").stat().st_size > 10_000
    # a second call uses the finished runs
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").glob("*/model/*")}
    shutil.rmtree(tmp_path / "runs" / "sweeps", ignore_errors=True)
    study.main([str(folder), "--seeds", "1", "--jobs", "2"])
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert (folder / "table.md").read_text(encoding="utf-8") == text
    assert "imsm fit-gate mini-lora-gsm8k-peft-s0-" in (folder / "commands.md").read_text(encoding="utf-8")
    # results of the harness are columns
    found = study.load_study(folder)
    found.harness = ["told"]
    jobs = study.run_seed(found, seed=0, source=folder, execute=False)
    results = json.dumps({"results": {"told": {"exact_match,none": 0.25}}})
    study.harness_file(found, jobs[1].folder, "tuned").write_text(results, encoding="utf-8")
    shown = study.study_table(found, jobs, study.study_scores(jobs), study.study_advice(jobs))
    column = shown.columns.index("told")
    assert [row[column] for row in shown.rows if row[0] in ("PEFT", "slow PEFT")] == ["–", "25.0"]


def test_harness_scores_are_the_first_metric_in_points(tmp_path: Path) -> None:
    file = tmp_path / "results.json"
    metrics = {"alias": "told", "exact_match,none": 0.25, "exact_match_stderr,none": 0.1}
    file.write_text(json.dumps({"results": {"told": metrics}}), encoding="utf-8")
    assert study.harness_scores(file) == {"told": 25.0}


def test_wrong_studies_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"has no study\.yaml"):
        study.load_study(tmp_path)
    for text in ("[", "title", "{title: a}", "{title: a, overrides: [], training: [], variants: [], sedes: 3}"):
        (tmp_path / "study.yaml").write_text(text)
        with pytest.raises(UserError, match="is not a study"):
            study.load_study(tmp_path)
    (tmp_path / "study.yaml").write_text("{title: a, overrides: [], training: [], variants: [{label: 'a: b'}]}")
    with pytest.raises(UserError, match="must have no colon"):
        study.load_study(tmp_path)
    (tmp_path / "study.yaml").write_text(
        "{title: a, overrides: [], training: [], variants: [{label: gate, fitted_on: PEFT}, {label: PEFT}]}"
    )
    with pytest.raises(UserError, match="fitted_on=PEFT: is not the label of a variant before it"):
        study.load_study(tmp_path)
