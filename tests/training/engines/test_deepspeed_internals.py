"""The supported DeepSpeed versions."""

from __future__ import annotations

import importlib.metadata
import tomllib

import pytest
import torch
from packaging.requirements import Requirement

from imsm.training.engines.deepspeed_internals import SUPPORTED, load_deepspeed
from imsm.utils.errors import UserError
from tests.helpers.paths import ROOT


def test_the_supported_range_is_that_of_the_extra() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (requirement,) = map(Requirement, project["optional-dependencies"]["deepspeed"])
    assert (requirement.name, requirement.specifier) == ("deepspeed", SUPPORTED)


@pytest.mark.parametrize("version", ["0.17.6", "0.20.0", "1.0.0"])
def test_another_version_is_a_user_error_before_the_import(version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.metadata, "version", lambda name: version)
    with pytest.raises(UserError, match=rf"^deepspeed={version}: not supported; install 'deepspeed<0.20,>=0.18'$"):
        load_deepspeed(device=torch.device("cpu"), local_rank=0)
