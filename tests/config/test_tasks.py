"""Tasks and metrics are looked up by name; every failure is one collected line."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from omegaconf import OmegaConf

from imsm.config.schema import ReplayConfig
from imsm.config.tasks import TaskLookup
from tests.helpers.config import composed, config


def lookup(config_dir: Path | None = None) -> TaskLookup:
    return TaskLookup(composed(), config_dir)


def write_task(config_dir: Path, name: str, **changes: object) -> None:
    folder = config_dir / "data"
    folder.mkdir(exist_ok=True)
    values = config().data.as_task().model_dump(exclude_unset=True) | {"name": name} | changes
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(values))


def test_target_and_its_own_name_are_the_same_task() -> None:
    for names in (["target", "webq"], ["gsm8k", "webq"], ["target", "gsm8k", "webq"]):
        found = lookup()
        tasks = found.evaluation_tasks(names, config().data, backbone=None, trained=True)
        assert (list(tasks), found.errors) == (["gsm8k", "webq"], [])


def test_an_unknown_task_is_an_error_with_the_closest_name() -> None:
    found = lookup()
    found.evaluation_tasks(["webqq"], config().data, backbone=None, trained=True)
    (line,) = found.errors
    assert line.startswith("evaluation.tasks=webqq: ") and "did you mean webq?" in line


def test_an_invalid_custom_task_is_an_error_of_its_keys(tmp_path: Path) -> None:
    write_task(tmp_path, "broken", max_new_tokens=0, stop="[")
    found = lookup(tmp_path)
    assert found.evaluation_tasks(["broken"], config().data, backbone=None, trained=True) == {}
    assert sorted(line.partition("=")[2].partition("=")[0] for line in found.errors) == [
        "broken: data.max_new_tokens",
        "broken: data.stop",
    ]


def test_interpolations_of_a_task_are_resolved_in_the_configuration(tmp_path: Path) -> None:
    write_task(tmp_path, "custom", max_new_tokens="${trainer.num_epochs}")
    tasks = lookup(tmp_path).evaluation_tasks(["custom"], config().data, backbone=None, trained=True)
    assert tasks["custom"].max_new_tokens == config().trainer.num_epochs


def test_an_unresolvable_interpolation_is_an_error(tmp_path: Path) -> None:
    write_task(tmp_path, "custom", max_new_tokens="${trainer.nothing}")
    found = lookup(tmp_path)
    found.evaluation_tasks(["custom"], config().data, backbone=None, trained=True)
    assert any("data.max_new_tokens" in line and "cannot be resolved" in line for line in found.errors)


def test_an_unknown_metric_is_an_error_with_the_closest_name() -> None:
    task = config().data.as_task().model_copy(update={"metrics": ["acuracy"]})
    found = lookup()
    found.metric_modules([task])
    (line,) = found.errors
    assert line.startswith("metric acuracy of data=gsm8k: ") and "did you mean accuracy?" in line


@pytest.mark.parametrize(
    ("replay", "problem"),
    [
        ({"task": "gsm8k"}, "is the target itself"),
        ({"task": "multirc"}, "has no training split"),
        ({"exclude_tests": ["webq"]}, "set peft.replay.exclude_tests=[webq,mrpc]"),
        ({"exclude_tests": ["mrpc", "webqq"]}, "did you mean webq?"),
    ],
)
def test_an_invalid_replay_is_an_error(replay: dict[str, object], problem: str) -> None:
    values = {"task": "webq", "ratio": 0.1, "exclude_tests": ["webq", "mrpc"]} | replay
    run, found = config(), lookup()
    found.replay_tasks(
        ReplayConfig.model_validate(values),
        run.data,
        evaluated=["target", "webq", "mrpc"],
        backbone=run.backbone,
        in_sequence=False,
    )
    assert any(problem in line for line in found.errors), found.errors


def test_the_last_task_of_a_sequence_is_the_target_and_all_are_evaluated() -> None:
    run, found = config(), lookup()
    sections, tasks = found.task_sequence(["mrpc", "cola"], run.data, run.evaluation, backbone=run.backbone)
    assert (list(tasks), found.errors) == (["mrpc", "cola"], [])
    assert sections["data"].name == "cola"
    assert sections["evaluation"].tasks == ["mrpc", "cola", "webq", "freebaseqa", "multirc"]


def test_an_invalid_sequence_replaces_no_section() -> None:
    run, found = config(), lookup()
    assert found.task_sequence(["mrpc", "jsonl"], run.data, run.evaluation, backbone=None) == ({}, {})
    assert len(found.errors) == 1


def test_missing_files_of_a_mirror_are_an_error(tmp_path: Path) -> None:
    cfg = OmegaConf.merge(composed(), {"data": {"mirror_dir": str(tmp_path)}})
    run, found = config(), TaskLookup(cfg, None)  # type: ignore[arg-type]
    data = run.data.model_copy(update={"mirror_dir": str(tmp_path)})
    found.evaluation_tasks(["target", "webq"], data, backbone=run.backbone, trained=False)
    assert len(found.errors) == 2
    assert all(str(tmp_path) in line for line in found.errors)
