"""`imsm schema`: a JSON schema that accepts composed configurations and rejects wrong ones."""

from __future__ import annotations

import json
from typing import Any

import pytest
from omegaconf import OmegaConf

from imsm.cli.main import main
from imsm.utils.options import list_options
from tests.helpers.config import composed, config

jsonschema = pytest.importorskip("jsonschema")


@pytest.fixture
def validator(capsys: pytest.CaptureFixture[str]) -> Any:
    assert main(["schema"]) == 0
    schema = json.loads(capsys.readouterr().out)
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


def values(*overrides: str) -> dict[str, Any]:
    """A configuration as `--cfg job --resolve` prints it."""
    found: Any = OmegaConf.to_container(composed(*overrides), resolve=True)
    return {key: value for key, value in found.items() if key != "sweep"}


@pytest.mark.slow
def test_composed_configurations_are_valid(validator: Any) -> None:
    groups = {group: list_options(group) for group in ("backbone", "data", "gate", "logger", "rehearsal", "trainer")}
    groups["backbone"].remove("generic")  # has no values without overrides
    # few compositions, which take long, that have every option
    lines = [
        tuple(f"{group}={names[index % len(names)]}" for group, names in groups.items())
        for index in range(max(map(len, groups.values())))
    ]
    lines += [("method=peft", "peft=loramoe_blc_replay", "logger=[wandb,trackio]", "task_sequence=[gsm8k,mrpc]")]
    problems = {line: [error.message for error in validator.iter_errors(values(*line))] for line in lines}
    assert {line: found for line, found in problems.items() if found} == {}


def test_saved_configurations_are_valid(validator: Any) -> None:
    for overrides in ((), ("method=peft", "backbone=llama3", "data=mrpc"), ("rehearsal=replay", "gate=residual")):
        validator.validate(json.loads(json.dumps(config(*overrides).to_dict())))


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        ("gate", "pooling", "median"),
        ("trainer", "learning_rate", 2.0),
        ("trainer", "epochs", 3),
        ("logger", "name", "wandbb"),
        ("evaluation", "tasks", []),
    ],
)
def test_wrong_values_are_invalid(validator: Any, section: str, key: str, value: Any) -> None:
    wrong = values()
    wrong[section] = {**wrong[section], key: value}
    assert not validator.is_valid(wrong)


def test_keys_have_the_descriptions_of_the_fields(validator: Any) -> None:
    fields = validator.schema["$defs"]["GateConfig"]["properties"]
    assert fields["skip"]["description"] == "Whether a query whose gate is decided continues with one stream."
