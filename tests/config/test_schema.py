"""Sections reject values that contradict each other; FIELDS_ONLY skips these checks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from imsm.config.schema import DataConfig, RunConfig
from imsm.data.sources import DataSource
from imsm.data.task import Task
from imsm.utils.errors import UserError
from imsm.utils.strict_model import FIELDS_ONLY, INCONSISTENT
from tests.helpers.config import config

TASKS = ("tasks", "replay_tasks", "stage_tasks")


def section(name: str, **changes: Any) -> Any:
    current = getattr(config(), name)
    return type(current).model_validate(current.model_dump(by_alias=True, exclude_unset=True) | changes)


@pytest.mark.parametrize(
    ("name", "changes", "field"),
    [
        ("gate", {"inputs": ["tuned", "tuned"]}, "inputs"),
        ("gate", {"skip_threshold": 0.2}, "skip_threshold"),
        ("gate", {"rank": None}, "rank"),
        ("gate", {"inputs": [], "dropout": 0.0}, "rank"),
        ("gate", {"trainable": False}, "trainable"),
        ("gate", {"init_value": 0.5}, "init_value"),
        ("gate", {"inputs": [], "rank": None, "init_value": 1.0}, "init_value"),
        ("gate", {"query_share": 0.5}, "query_share"),
        ("method", {"trainable": False}, "trainable"),
        ("method", {"stream": "original"}, "trainable"),
        ("trainer", {"micro_batch_size": 3}, "global_batch_size"),
        ("trainer", {"kl_mask_target": True}, "kl_mask_target"),
        ("trainer", {"carry_over": True}, "carry_over"),
        ("trainer", {"packing": True}, "packing"),
        (
            "trainer",
            {"loss_reduction": "micro_batches", "micro_batch_size": 4, "micro_batch_tokens": 64},
            "micro_batch_tokens",
        ),
        ("trainer", {"loss_reduction": "micro_batches", "micro_batch_size": None}, "loss_reduction"),
        ("trainer", {"metric_for_best_model": "validation_loss", "save_steps": 5}, "metric_for_best_model"),
        ("trainer", {"metric_for_best_model": "validation_loss", "validation_size": 5}, "metric_for_best_model"),
        ("evaluation", {"tasks": ["webq", "webq"]}, "tasks"),
        ("engine", {"hostfile": "hosts"}, "hostfile"),
        ("data", {"hub": None}, "hub"),
    ],
)
def test_fields_that_contradict_each_other_are_an_error_of_one_field(
    name: str, changes: dict[str, Any], field: str
) -> None:
    with pytest.raises(ValidationError) as caught:
        section(name, **changes)
    (error,) = caught.value.errors()
    assert (error["loc"], error["type"]) == ((field,), INCONSISTENT)


def test_all_inconsistencies_of_a_section_are_reported() -> None:
    with pytest.raises(ValidationError) as caught:
        section("gate", rank=None, trainable=False, init_value=0.5)
    assert [error["loc"] for error in caught.value.errors()] == [("rank",), ("trainable",), ("init_value",)]


def test_fields_only_skips_the_consistency_checks() -> None:
    values = config().method.model_dump() | {"trainable": False}
    assert not type(config().method).model_validate(values, context=FIELDS_ONLY).trainable


def test_a_custom_gate_is_not_limited_to_the_shipped_gates_arguments() -> None:
    gate = section("gate", _target_="my_gates.Gate", rank=None, slope=2.0)
    assert gate.arguments()["slope"] == 2.0


@pytest.mark.parametrize("source", ["mirror", "local"])
def test_a_source_without_its_folder_is_an_error_of_the_folder(source: str) -> None:
    with pytest.raises(ValidationError) as caught:
        section("data", source=source)
    assert [error["loc"] for error in caught.value.errors()] == [(f"{source}_dir",)]


def test_the_target_is_read_from_the_local_folder_then_the_mirror_then_the_source() -> None:
    backbone = config().backbone
    data = section("data", local_dir="/a", mirror_dir="/b")
    assert data.target_source() == DataSource(kind="local", path="/a")
    assert data.forgetting_source(backbone) == DataSource(kind="mirror", path="/b")
    data = section("data", local_dir="/a")
    assert data.forgetting_source(backbone) == DataSource(kind="miniature")
    assert section("data", source="hub").target_source() == DataSource(kind="hub")


def test_data_metric_replaces_the_metrics_of_both_protocols() -> None:
    data = section("data", metric="f1")
    assert (data.metrics, data.paper_code_metrics) == (["f1"], [])


def test_with_task_changes_the_task_and_keeps_the_shared_settings() -> None:
    data = section("data", max_train_examples=7)
    mrpc = config("data=mrpc").data.as_task()
    changed = data.with_task(mrpc)
    assert type(mrpc) is Task and type(changed) is DataConfig
    assert changed.as_task() == mrpc
    assert changed.max_train_examples == 7


def test_limit_by_task_takes_precedence_over_limit() -> None:
    evaluation = section("evaluation", limit=5, limit_by_task={"webq": 2})
    assert (evaluation.limit_of("webq"), evaluation.limit_of("mrpc")) == (2, 5)


def test_a_saved_config_is_loaded_without_its_files(tmp_path: Any) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    for role in ("train", "test"):
        (folder / f"{role}.jsonl").write_text('{"input": "a", "output": "b"}\n')
    saved = config("data=jsonl", f"data.local_dir={folder}").to_dict()
    for file in folder.iterdir():
        file.unlink()
    folder.rmdir()
    assert RunConfig.from_dict(saved).data.local_dir == str(folder)


def test_the_config_dir_of_a_saved_config_is_not_used(tmp_path: Path) -> None:
    saved = config(config_dir=tmp_path).to_dict()
    assert saved["config_dir"] == str(tmp_path)
    source = tmp_path / "result.json"
    assert RunConfig.from_dict(saved).config_dir is None
    assert RunConfig.from_file(saved, source=source).config_dir is None
    assert RunConfig.from_file(saved, source=source, config_dir=tmp_path).config_dir == str(tmp_path)


@pytest.mark.parametrize(
    ("keys", "value"),
    [
        (["gate", "_target_"], "payload.Gate"),
        (["gate", "_target_"], "imsm.distributed.launcher.launch"),
        (["peft", "_target_"], "payload.lora"),
        (["peft", "_target_"], "imsm.distributed.launcher.launch"),
        (["backbone", "local_resolver"], "payload.path"),
        (["data", "module"], "payload"),
        (["tasks", "webq", "module"], "payload"),
        (["replay_tasks", "webq", "module"], "payload"),
        (["stage_tasks", "mrpc", "module"], "payload"),
        (["metrics", "contain"], "payload"),
    ],
)
def test_a_saved_config_names_no_other_code(keys: list[str], value: str, tmp_path: Path) -> None:
    saved = config().to_dict()
    saved |= {name: {"webq": dict(saved["tasks"]["webq"]), "mrpc": dict(saved["tasks"]["mrpc"])} for name in TASKS}
    section = saved
    for key in keys[:-1]:
        section = section[key]
    section[keys[-1]] = value
    with pytest.raises(UserError) as error:
        RunConfig.from_file(saved, source=tmp_path / "result.json")
    assert str(error.value).startswith(f"{tmp_path / 'result.json'}: config.{'.'.join(keys)}={value}: ")


@pytest.mark.parametrize("saved", [{}, {"seed": []}, {"backbone": 1}, []])
def test_a_saved_config_of_another_form_is_a_user_error(saved: Any, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"result\.json: "):
        RunConfig.from_file(saved, source=tmp_path / "result.json")


@pytest.mark.parametrize("name", ["../x", "/x", "a/b", "", "..", "a\n", "x" * 300])
def test_names_of_options_and_tasks_are_no_paths(name: str) -> None:
    saved = config().to_dict()
    for path in (["backbone"], ["peft"], ["data"], ["gate"], ["method"], ["trainer"], ["engine"], ["tasks", "webq"]):
        values = json.loads(json.dumps(saved))
        section = values
        for key in path:
            section = section[key]
        section["name"] = name
        with pytest.raises(ValidationError):
            RunConfig.from_dict(values)


def test_the_evaluation_batch_size_may_be_left_to_the_device() -> None:
    assert config("evaluation=all").evaluation.batch_size is None
    assert config("evaluation=all", "evaluation.batch_size=auto").evaluation.batch_size is None
    # on a CPU the number that was the default before
    assert config("evaluation=target").evaluation.fixed_batch_size == 16
    assert config().evaluation.fixed_batch_size == 128  # the miniature's
    assert config("evaluation.batch_size=24").evaluation.fixed_batch_size == 24
    with pytest.raises(UserError, match=r"evaluation\.batch_size=0: must be at least 1"):
        config("evaluation.batch_size=0")


def test_a_static_cache_is_not_of_vllm() -> None:
    with pytest.raises(UserError) as refused:
        config("evaluation.static_cache=true", "evaluation.backend=vllm")
    assert "evaluation.static_cache=true: is of evaluation.backend=transformers" in str(refused.value)
