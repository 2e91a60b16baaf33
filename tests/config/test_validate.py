"""Checks across sections and of files; all errors of a configuration are reported together."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from imsm.config.validate import ValidationResult, load_config, validate
from imsm.utils.errors import UserError
from tests.helpers.config import composed


def result(**changes: Any) -> ValidationResult:
    """Validate the default configuration with some values changed; "__" separates section and key."""
    cfg = copy.deepcopy(composed())
    OmegaConf.set_struct(cfg, False)
    for key, value in changes.items():
        OmegaConf.update(cfg, key.replace("__", ".", 1), value, merge=False)
    return validate(cfg)


def keys(errors: list[str]) -> set[str]:
    return {line.partition("=")[0] for line in errors}


def test_a_valid_configuration_has_its_tasks_and_metrics() -> None:
    found = result()
    assert (found.errors, found.rejected) == ([], set())
    assert found.config is not None
    assert list(found.config.tasks) == ["gsm8k", "webq", "freebaseqa", "multirc", "mrpc"]
    assert set(found.config.metrics) >= {"gsm8k_accuracy", "contain", "accuracy"}


def test_type_errors_inconsistencies_and_conflicts_are_reported_together() -> None:
    found = result(
        seed=-1,
        trainer__learning_rate="fast",
        gate__rank=None,
        data__chat_template=True,
        evaluation__tasks=["target", "webqq"],
        no_section=3,
    )
    assert keys(found.errors) == {
        "seed", "trainer.learning_rate", "gate.rank", "data.chat_template", "evaluation.tasks", "no_section",
    }  # fmt: skip
    assert len(found.errors) == 6


def test_rejected_keys_are_those_that_are_invalid_on_their_own() -> None:
    found = result(trainer__learning_rate="fast", gate__rank=None)
    assert found.rejected == {"trainer.learning_rate"}


def test_an_inconsistent_section_still_takes_part_in_the_other_checks(tmp_path: Path) -> None:
    found = result(gate__trainable=False, frozen_adapter=str(tmp_path))
    assert keys(found.errors) == {"gate.trainable", "frozen_adapter"}
    assert sum("gate=query is not trainable" in line for line in found.errors) == 1


def test_load_config_raises_all_errors_at_once() -> None:
    cfg = OmegaConf.merge(composed(), {"seed": -1, "mode": "evalute"})
    with pytest.raises(UserError, match="2 errors in the configuration") as caught:
        load_config(cfg)  # type: ignore[arg-type]
    assert "seed=-1" in str(caught.value) and "did you mean mode=evaluate?" in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"backbone__name_or_path": "/no/such/model"}, "no such folder"),
        ({"backbone__name_or_path": "not an id"}, "neither a Hub id nor an existing folder"),
        ({"backbone__local_resolver": "os.system"}, "backbone.local_resolver=os.system: "),
        ({"peft__target_roles": []}, "needs at least one role"),
        ({"peft__target_roles": ["attention_qury"]}, "did you mean attention_query?"),
        ({"gate__slope": 1}, "no such key of gate"),
        ({"backbone__dtype": "float16"}, "trainer.mixed_precision=fp16"),
        ({"backbone__dtype": "bfloat16", "trainer__mixed_precision": "fp16"}, "backbone.dtype=float16"),
        ({"gate___target_": "imsm.nothing.Gate"}, "gate._target_=imsm.nothing.Gate"),
        ({"evaluation__limit_by_task": {"cola": 3}}, "cola is not evaluated"),
        ({"data__mirror_dir": "/no/such/mirror"}, "no such folder"),
        ({"data__source": "hub"}, "cannot read real text"),
        ({"data__module": "imsm.data.tasks.nothing"}, "no such module"),
        ({"data__splits": {"train": [], "test": ["test"]}}, "has no split to train on"),
        ({"resume": "atuo"}, "did you mean resume=auto?"),
        ({"mode": "evaluate", "run_dir": "/no/such/run"}, "no such run to evaluate"),
        ({"task_sequence": ["gsm8k"]}, "needs at least two tasks"),
        ({"task_sequence": ["gsm8k", "mrpc"], "run_dir": "/tmp/x"}, "has its own folder"),
        ({"evaluation__protocol": "paper_code", "data__metric": "f1"}, "has no paper_code_metrics"),
        ({"engine__fsdp2": True, "engine__stage": 2}, "is an engine without ZeRO"),
        ({"engine__fsdp2": True, "engine__stage": 0, "evaluation__static_cache": True}, "a CUDA graph does not run"),
        ({"backbone__quantization": "int3"}, "backbone.quantization=int3"),
        ({"backbone__quantization": "nf4", "engine__stage": 3}, "4-bit weights cannot be sharded"),
        ({"backbone__quantization": "nf4", "evaluation__backend": "vllm"}, "answer with the unquantized model"),
        ({"engine__nnodes": 2, "engine__hostfile": "/no/such/hosts"}, "engine.hostfile"),
    ],
)
def test_a_conflict_is_reported(changes: dict[str, Any], problem: str) -> None:
    errors = result(**changes).errors
    assert any(problem in line for line in errors), errors


def test_an_explicit_source_must_not_contradict_the_folders(tmp_path: Path) -> None:
    for source, folder in (("miniature", "mirror_dir"), ("miniature", "local_dir"), ("mirror", "local_dir")):
        folders = {f"data__{name}": str(tmp_path) for name in {folder, "mirror_dir" if source == "mirror" else folder}}
        errors = result(data__source=source, **folders).errors
        assert sum(line.startswith(f"data.source={source}: contradicts data.{folder}=") for line in errors) == 1


def test_relative_folders_become_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    found = result(run_dir="runs/one").config
    assert found is not None and found.run_dir == str(tmp_path / "runs" / "one")
