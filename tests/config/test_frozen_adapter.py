"""frozen_adapter=RUN: invalid combinations, identity and compared runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from imsm.config.compose import ConfigComposer
from imsm.config.identity import comparable_up_to_method, run_identity, run_name
from imsm.config.schema import RunConfig
from imsm.config.stages import final_stage
from imsm.evaluation.result import write_result
from imsm.reporting.runs import find_comparable_runs, seeds_of, with_labels
from imsm.utils.errors import UserError
from imsm.utils.run_dir import RunDir
from tests.helpers.config import config, result


def finished(folder: Path, *overrides: str, trained: RunConfig | None = None) -> str:
    """Write the files of a finished run that the validation reads; return the override."""
    run = RunDir(folder)
    run.adapter.mkdir(parents=True)
    identity = run_identity(trained or config(*(overrides or ("method=peft",))))
    run.identity.write_text(json.dumps(identity))
    run.trained.write_text("{}")
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        (run.adapter / name).write_text("")
    return f"frozen_adapter={folder}"


def errors(*overrides: str) -> list[str]:
    return ConfigComposer().validate(overrides, sweep=False)


def test_null_changes_neither_identity_nor_name() -> None:
    assert config("frozen_adapter=null").frozen_run is None
    assert "frozen_adapter" not in run_identity(config())
    assert "frozen" not in run_name(config())


def test_the_adapters_identity_is_part_of_the_identity(tmp_path: Path) -> None:
    one, same, other = (
        finished(tmp_path / name, "method=peft", f"seed={seed}")
        for name, seed in (("one", 0), ("same", 0), ("other", 1))
    )
    runs = [config(given) for given in (one, same, other)]
    assert run_identity(runs[0]) == run_identity(runs[1])
    assert run_name(runs[0]).startswith("mini-lora-gsm8k-imsm-frozen-query-r8-s0-")
    assert len({run_name(run) for run in (*runs, config())}) == 3
    assert run_identity(runs[0])["frozen_adapter"] == run_identity(config("method=peft"))
    again = RunConfig.from_dict(json.loads(json.dumps(runs[0].to_dict())))
    assert run_name(again) == run_name(runs[0])


def test_the_tasks_of_the_adapter_are_listed(tmp_path: Path) -> None:
    stage = final_stage(config("task_sequence=[mrpc,cola]", "method=peft"))
    given = finished(tmp_path / "stage", trained=stage)
    run = config(given)
    assert run.frozen_run is not None and run.frozen_run.tasks == ["mrpc", "cola"]
    # training a gate on a frozen adapter did not change that adapter
    second = config(finished(tmp_path / "gate", trained=run), "gate=no_query")
    assert second.frozen_run == run.frozen_run


def test_a_relative_folder_gives_the_same_config(tmp_path: Path, monkeypatch: Any) -> None:
    given = finished(tmp_path / "one")
    monkeypatch.chdir(tmp_path)
    assert config("frozen_adapter=one") == config(given)


@pytest.mark.parametrize(
    ("file", "problem"),
    [
        ("identity.json", "contains no run (identity.json is missing)"),
        ("training.json", "its training is not finished (training.json is missing)"),
        ("model/adapter/adapter_model.safetensors", "adapter_model.safetensors is not in"),
        ("model/adapter/adapter_config.json", "adapter_config.json is not in"),
    ],
)
def test_missing_files_of_the_run_are_errors(tmp_path: Path, file: str, problem: str) -> None:
    given = finished(tmp_path / "one")
    (tmp_path / "one" / file).unlink()
    (line,) = errors(given)
    assert line.startswith(f"{given}: ") and problem in line


def test_folders_without_a_trained_run_are_errors(tmp_path: Path) -> None:
    (line,) = errors(f"frozen_adapter={tmp_path / 'nowhere'}")
    assert "no such folder; give the folder of a finished run" in line
    (line,) = errors(finished(tmp_path / "original", "method=original"))
    assert "because nothing was trained" in line
    given = finished(tmp_path / "damaged")
    for text in ("{", "[]", "{}", '{"method": 3}'):
        (tmp_path / "damaged" / "identity.json").write_text(text)
        (line,) = errors(given)
        assert "identity.json: is damaged" in line


@pytest.mark.parametrize(
    ("overrides", "differences"),
    [
        (["backbone.dtype=bfloat16"], ["backbone.dtype=float32, and this run has bfloat16"]),
        (["peft.r=4"], ["peft.r=16, and this run has 4; set peft.r=16"]),
        (["peft.lora_dropout=0.1", "peft.lora_alpha=3"], ["peft.lora_alpha=", "peft.lora_dropout=0.0"]),
        (["peft.target_roles=[attention_query]"], ["this run has [q_proj]; choose them by peft.target_roles"]),
        (["peft=ia3"], ["peft._target_=peft.LoraConfig", "that method by peft="]),
        (["peft=ia3", "backbone.dtype=bfloat16"], ["backbone.dtype", "peft._target_"]),
    ],
)
def test_each_differing_setting_of_backbone_and_adapter_is_an_error(
    tmp_path: Path, overrides: list[str], differences: list[str]
) -> None:
    found = errors(finished(tmp_path / "one"), *overrides)
    assert len(found) == (1 if "peft=ia3" in overrides else 0) + sum("." in o for o in overrides)
    assert all(any(part in line for line in found) for part in differences)


def test_data_trainer_gate_and_method_specific_keys_may_differ(tmp_path: Path) -> None:
    given = finished(tmp_path / "one")
    assert errors(given, "data=mrpc", "seed=3", "trainer.learning_rate=2e-2", "gate=learned_scalar") == []
    static = ["peft=adalora_static", "backbone=llama3", "trainer=paper_code"]
    assert errors(finished(tmp_path / "two", "method=peft", *static), *static) == []
    imsm = finished(tmp_path / "three", "method=imsm", "gate=no_query")
    assert errors(imsm) == []


def test_all_conflicts_are_reported_together(tmp_path: Path) -> None:
    given = finished(tmp_path / "one")
    found = errors(given, "method=peft", "gate=no_gate", "peft.r=4", "task_sequence=[gsm8k,mrpc]")
    assert len(found) == 4
    assert all(line.startswith(given) for line in found)
    for problem in (
        "method=peft has none; choose method=imsm",
        "gate=no_gate is not trainable; choose another gate",
        "task_sequence=[gsm8k,mrpc] train an adapter; omit one of the two",
        "peft.r=16, and this run has 4",
    ):
        assert sum(problem in line for line in found) == 1
    with pytest.raises(UserError, match="4 errors"):
        config(given, "method=peft", "gate=no_gate", "peft.r=4", "task_sequence=[gsm8k,mrpc]")


def test_it_is_compared_with_the_run_that_its_adapter_is_from(tmp_path: Path) -> None:
    source, runs = finished(tmp_path / "source"), tmp_path / "runs"
    frozen = result("imsm", source, "trainer.learning_rate=2e-2")
    peft, joint = result("peft"), result("imsm")
    unrelated = result("peft", "trainer.learning_rate=2e-2")
    for number, record in enumerate([result("original"), peft, joint, unrelated]):
        write_result(_created(runs / str(number)), record)
    assert compared(runs, frozen) == [result("original"), peft]
    assert labels([*compared(runs, frozen), frozen]) == ["original", "peft", "imsm (frozen adapter)"]
    same_gate = result("imsm", source)
    assert compared(runs, same_gate) == [result("original"), peft, joint]
    gates = labels([*compared(runs, same_gate), same_gate])[2:]
    assert gates == ["imsm (query r8)", "imsm (query r8, frozen adapter)"]
    write_result(_created(runs / "frozen"), same_gate)
    assert compared(runs, peft)[1:] == [joint, same_gate]
    assert not comparable_up_to_method(frozen["identity"], same_gate["identity"])


def compared(runs: Path, record: dict[str, Any]) -> list[dict[str, Any]]:
    return [found for found, _ in find_comparable_runs(runs, record)]


def labels(records: list[dict[str, Any]]) -> list[str]:
    return [run.label for run in with_labels([(record, Path()) for record in records])]


def test_seeds_of_gate_and_adapter_must_agree(tmp_path: Path) -> None:
    sources = [finished(tmp_path / f"s{s}", "method=peft", f"seed={s}") for s in (0, 1)]
    records = [result("imsm", given, f"seed={s}") for s, given in enumerate(sources)]
    records.append(result("imsm", sources[0], "seed=2"))
    for number, record in enumerate(records):
        write_result(_created(tmp_path / "runs" / str(number)), record)
    assert set(seeds_of(tmp_path / "runs", records[0])) == {0, 1}


def test_seeds_of_a_sequences_stages_must_agree(tmp_path: Path) -> None:
    records = []
    for seed in (0, 1, 2):
        last = final_stage(config("task_sequence=[gsm8k,mrpc]", "method=peft", f"seed={seed}"))
        records.append(result("peft", f"seed={seed}", identity=run_identity(last)))
        write_result(_created(tmp_path / "runs" / str(seed)), records[-1])
    assert set(seeds_of(tmp_path / "runs", records[1])) == {0, 1, 2}


def _created(folder: Path) -> Path:
    folder.mkdir(parents=True)
    return folder
