"""The run that fits a gate on the adapter of a finished run (`imsm fit-gate`).

Backbone, adapter, data, evaluation and seed are those of the finished run; gate, recipe and rehearsal are the
defaults below, and every override of the command takes precedence.
"""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from imsm.config.compose import ConfigComposer
from imsm.config.schema import RunConfig
from imsm.config.tasks import TARGET
from imsm.config.validate import load_config
from imsm.evaluation.result import FILE as RESULT
from imsm.evaluation.result import read_result
from imsm.utils.errors import UserError

DEFAULTS = {"method": "imsm", "gate": "query", "gate.loss": "route", "trainer": "gate", "rehearsal": "self"}
MAX_EXAMPLES = 1000
"""Training examples unless `data.max_train_examples` is given: a gate needs fewer than an adapter."""
_OF_THE_ADAPTER = ("backbone", "peft", "method", "frozen_adapter", "task_sequence")
_OF_THE_RUN = ("backbone", "peft", "data", "evaluation", "engine", "logger")


def saved_config(folder: Path, *, config_dir: Path | None) -> RunConfig:
    """Return the configuration of a finished run.

    Raises:
        UserError: The run has no result, or its configuration is damaged.
    """
    return RunConfig.from_file(read_result(folder)["config"], source=folder / RESULT, config_dir=config_dir)


def fit_gate_config(
    folder: Path, saved: RunConfig, *, overrides: Sequence[str] = (), config_dir: Path | None = None
) -> RunConfig:
    """Return the configuration of the run that fits a gate on the adapter in ``folder``.

    Args:
        folder: Folder of the finished run.
        saved: Its configuration.
        overrides: As of `imsm run`.
        config_dir: Folder of `--config-dir`.

    Raises:
        UserError: An override is invalid or is part of the adapter's own training, or no target data is known.
    """
    for text in overrides:
        if _section(text) in _OF_THE_ADAPTER:
            raise UserError(f"{text}: is part of the finished run {folder.name}; omit it")
    chosen = _keys(overrides)
    if saved.imported is not None and saved.target is None and "data" not in chosen:
        raise UserError(
            f"{folder.name}: the data that the adapter was trained on is unknown; give data=NAME, or --prompts to use "
            "its own answers"
        )
    cfg = ConfigComposer(config_dir).compose([*_defaults(overrides), *overrides])
    values = saved.to_dict()
    for name in _OF_THE_RUN:
        if name not in chosen:
            keys = [key.split(".")[1] for key in chosen if key.startswith(f"{name}.")]
            cfg[name] = _without_interpolations(values[name], folder) | {key: cfg[name][key] for key in keys}
    # a source that a folder replaces must not look like an explicit choice
    if "data" not in chosen and cfg.data.source == cfg.backbone.default_data_source:
        cfg.data.source = "${backbone.default_data_source}"
    if not chosen & {"evaluation.tasks", "evaluation"} and TARGET not in cfg.evaluation.tasks:
        cfg.evaluation.tasks = [TARGET, *(name for name in cfg.evaluation.tasks if name != cfg.data.name)]
    if "data.max_train_examples" not in chosen:
        cfg.data.max_train_examples = min(cfg.data.max_train_examples or MAX_EXAMPLES, MAX_EXAMPLES)
    if "seed" not in chosen:
        cfg.seed = saved.seed
    cfg.frozen_adapter = os.path.abspath(folder)
    return load_config(cfg, config_dir=config_dir)


def without_effect(overrides: Sequence[str], *, config_dir: Path | None = None) -> list[str]:
    """Return the overrides of a valid `imsm fit-gate` that its run does not use."""
    frozen = "frozen_adapter=RUN"  # any path: nothing is validated
    return ConfigComposer(config_dir).without_effect([*_defaults(overrides), *overrides, frozen])


def _defaults(overrides: Sequence[str]) -> list[str]:
    """Return the overrides of `DEFAULTS` that are not given."""
    return [f"{key}={value}" for key, value in DEFAULTS.items() if key not in _keys(overrides)]


def _keys(overrides: Sequence[str]) -> set[str]:
    return {text.partition("=")[0].lstrip("+~") for text in overrides}


def _section(text: str) -> str:
    return text.partition("=")[0].lstrip("+~").split(".")[0]


def _without_interpolations(values: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Return a section of a result; OmegaConf would evaluate ${...} in it."""
    if "${" in json.dumps(values):
        raise UserError(f"{folder / RESULT}: its configuration contains ${{...}}, which no finished run has")
    return dict(values)
