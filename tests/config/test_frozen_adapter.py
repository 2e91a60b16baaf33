"""The run whose adapter is taken as it is: what is refused, and what it makes of an identity."""

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
from imsm.reporting.runs import find_comparable_runs, seeds_of
from imsm.reporting.score_table import compare
from imsm.utils.errors import UserError
from imsm.utils.run_dir import RunDir
from tests.helpers.config import config, result


def finished(folder: Path, *overrides: str, chosen: RunConfig | None = None) -> str:
    """A folder as a finished run leaves it, as far as a check looks."""
    run = RunDir(folder)
    run.adapter.mkdir(parents=True)
    identity = run_identity(chosen or config(*(overrides or ("method=peft",))))
    run.identity.write_text(json.dumps(identity))
    run.trained.write_text("{}")
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        (run.adapter / name).write_text("")
    return f"frozen_adapter={folder}"


def errors(*overrides: str) -> list[str]:
    return ConfigComposer().validate(overrides, sweep=False)


def test_a_run_without_it_is_what_it_was() -> None:
    assert config("frozen_adapter=null").frozen_run is None
    assert "frozen_adapter" not in run_identity(config())
    assert "frozen" not in run_name(config())


def test_another_adapter_is_another_run(tmp_path: Path) -> None:
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


def test_what_the_adapter_learned_is_known(tmp_path: Path) -> None:
    stage = final_stage(config("task_sequence=[mrpc,cola]", "method=peft"))
    given = finished(tmp_path / "stage", chosen=stage)
    run = config(given)
    assert run.frozen_run is not None and run.frozen_run.tasks == ["mrpc", "cola"]
    # a gate that was fitted on a frozen adapter left that adapter as it was
    through = config(finished(tmp_path / "gate", chosen=run), "gate=no_query")
    assert through.frozen_run == run.frozen_run


def test_a_relative_folder_is_the_same_run(tmp_path: Path, monkeypatch: Any) -> None:
    given = finished(tmp_path / "one")
    monkeypatch.chdir(tmp_path)
    assert config("frozen_adapter=one") == config(given)


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        ("identity.json", "holds no run (identity.json is missing)"),
        ("training.json", "its training is not finished (training.json is missing)"),
        ("model/adapter/adapter_model.safetensors", "adapter_model.safetensors is not in"),
        ("model/adapter/adapter_config.json", "adapter_config.json is not in"),
    ],
)
def test_what_is_missing_is_said(tmp_path: Path, harm: str, said: str) -> None:
    given = finished(tmp_path / "one")
    (tmp_path / "one" / harm).unlink()
    (line,) = errors(given)
    assert line.startswith(f"{given}: ") and said in line


def test_what_is_no_trained_run_is_refused(tmp_path: Path) -> None:
    (line,) = errors(f"frozen_adapter={tmp_path / 'nowhere'}")
    assert "there is no such folder; give the folder of a finished run" in line
    (line,) = errors(finished(tmp_path / "original", "method=original"))
    assert "nothing was trained there" in line
    given = finished(tmp_path / "damaged")
    for text in ("{", "[]", "{}", '{"method": 3}'):
        (tmp_path / "damaged" / "identity.json").write_text(text)
        (line,) = errors(given)
        assert "identity.json is damaged" in line


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["backbone.dtype=bfloat16"], ["backbone.dtype=float32, and this run has bfloat16"]),
        (["peft.r=4"], ["peft.r=16, and this run has 4; choose peft.r=16"]),
        (["peft.lora_dropout=0.1", "peft.lora_alpha=3"], ["peft.lora_alpha=", "peft.lora_dropout=0.0"]),
        (["peft.target_roles=[attention_query]"], ["this run has [q_proj]; choose these by peft.target_roles"]),
        (["peft=ia3"], ["peft._target_=peft.LoraConfig", "that method by peft="]),
        (["peft=ia3", "backbone.dtype=bfloat16"], ["backbone.dtype", "peft._target_"]),
    ],
)
def test_an_adapter_of_other_choices_is_refused(tmp_path: Path, overrides: list[str], said: list[str]) -> None:
    found = errors(finished(tmp_path / "one"), *overrides)
    assert len(found) == (1 if "peft=ia3" in overrides else 0) + sum("." in o for o in overrides)
    assert all(any(part in line for line in found) for part in said)


def test_what_is_learned_may_be_chosen_anew(tmp_path: Path) -> None:
    given = finished(tmp_path / "one")
    assert errors(given, "data=mrpc", "seed=3", "trainer.learning_rate=2e-2", "gate=learned_scalar") == []
    # a key that goes with the arm is none of the adapter's
    arms = ["peft=adalora_static", "backbone=llama3", "trainer=paper_code"]
    assert errors(finished(tmp_path / "two", "method=peft", *arms), *arms) == []
    imsm = finished(tmp_path / "three", "method=imsm", "gate=no_query")
    assert errors(imsm) == []


def test_all_that_does_not_go_together_is_said_at_once(tmp_path: Path) -> None:
    given = finished(tmp_path / "one")
    found = errors(given, "method=peft", "gate=no_gate", "peft.r=4", "task_sequence=[gsm8k,mrpc]")
    assert len(found) == 4
    assert all(line.startswith(given) for line in found)
    for said in (
        "method=peft has none; choose method=imsm",
        "gate=no_gate is not trained; choose a gate that is",
        "task_sequence=[gsm8k,mrpc] train an adapter; leave one of the two out",
        "peft.r=16, and this run has 4",
    ):
        assert sum(said in line for line in found) == 1
    with pytest.raises(UserError, match="4 problems"):
        config(given, "method=peft", "gate=no_gate", "peft.r=4", "task_sequence=[gsm8k,mrpc]")


def test_it_stands_beside_the_run_that_its_adapter_came_from(tmp_path: Path) -> None:
    source, runs = finished(tmp_path / "source"), tmp_path / "runs"
    frozen = result("imsm", source, "trainer.learning_rate=2e-2")
    peft, joint = result("peft"), result("imsm")
    strange = result("peft", "trainer.learning_rate=2e-2")
    for number, record in enumerate([result("original"), peft, joint, strange]):
        write_result(_made(runs / str(number)), record)
    arms = [found for found, _ in find_comparable_runs(runs, frozen)]
    assert arms == [result("original"), peft]
    assert compare([*arms, frozen]).arms == ["original", "peft", "imsm (frozen adapter)"]
    alike = result("imsm", source)
    arms = [found for found, _ in find_comparable_runs(runs, alike)]
    assert arms == [result("original"), peft, joint]
    labels = compare([*arms, alike]).arms
    assert labels[2:] == ["imsm (query r8)", "imsm (query r8, frozen adapter)"]
    write_result(_made(runs / "frozen"), alike)
    assert [found for found, _ in find_comparable_runs(runs, peft)][1:] == [joint, alike]
    assert not comparable_up_to_method(frozen["identity"], alike["identity"])


def test_seeds_of_gate_and_adapter_go_together(tmp_path: Path) -> None:
    sources = [finished(tmp_path / f"s{s}", "method=peft", f"seed={s}") for s in (0, 1)]
    records = [result("imsm", given, f"seed={s}") for s, given in enumerate(sources)]
    records.append(result("imsm", sources[0], "seed=2"))
    for number, record in enumerate(records):
        write_result(_made(tmp_path / "runs" / str(number)), record)
    assert set(seeds_of(tmp_path / "runs", records[0])) == {0, 1}


def test_seeds_of_a_sequences_stages_go_together(tmp_path: Path) -> None:
    records = []
    for seed in (0, 1, 2):
        last = final_stage(config("task_sequence=[gsm8k,mrpc]", "method=peft", f"seed={seed}"))
        records.append(result("peft", f"seed={seed}", identity=run_identity(last)))
        write_result(_made(tmp_path / "runs" / str(seed)), records[-1])
    assert set(seeds_of(tmp_path / "runs", records[1])) == {0, 1, 2}


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True)
    return folder
