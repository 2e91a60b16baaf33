"""From Hydra's composition to a typed configuration, or to every problem in it at once."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from omegaconf import DictConfig, OmegaConf
from pydantic import TypeAdapter, ValidationError

from imsm.config.cross_section import validate_cross_section
from imsm.config.interpolation import resolve
from imsm.config.schema import RunConfig, is_local
from imsm.config.tasks import apply_sequence
from imsm.utils.errors import UserError
from imsm.utils.messages import describe_errors, format_errors, unknown_key_error

_DERIVED = {"tasks", "replay_tasks", "stage_tasks", "previous_stage", "frozen_run", "metrics"}
_DERIVED |= {"config_dir"}


def load_config(cfg: DictConfig, *, config_dir: Path | None = None) -> RunConfig:
    """The typed configuration of a run.

    Args:
        cfg: what Hydra composed.
        config_dir: the folder of options of one's own (`--config-dir`).

    Raises:
        UserError: naming every problem at once.
    """
    examined = validate(cfg, config_dir=config_dir)
    if examined.config is None:
        raise UserError(format_errors(examined.errors))
    return examined.config


@dataclass(frozen=True, slots=True, kw_only=True)
class ValidationResult:
    """What looking at a composition found."""

    config: RunConfig | None
    """None if there is any problem."""
    errors: list[str]
    """A line each."""
    refused: set[str]
    """Keys whose own values were refused, so that what they demand of others is not known."""


def validate(
    cfg: DictConfig, *, config_dir: Path | None = None, unsure: frozenset[str] = frozenset()
) -> ValidationResult:
    """The typed configuration, or a line per problem.

    Args:
        cfg: what Hydra composed.
        config_dir: the folder of options of one's own.
        unsure: sections whose option was not found, so that a default stands in its place; what
            they demand of others is not looked at.
    """
    values, unresolved = resolve(cfg)
    problems = list(unresolved.values())
    _make_paths_absolute(values)
    fields = {name: field for name, field in RunConfig.model_fields.items() if name not in _DERIVED}
    problems += [unknown_key_error("", name, value, fields) for name, value in values.items() if name not in fields]
    sections: dict[str, Any] = {}
    refused: set[str] = set()
    for name, field in fields.items():
        if name not in values:
            problems.append(f"{name}: is missing")
            continue
        try:
            sections[name] = _adapter(name).validate_python(values[name], strict=True)
        except ValidationError as error:
            keys = {".".join(map(str, (name, *e["loc"]))): e for e in error.errors()}
            told = [dict(e) for key, e in keys.items() if key not in unresolved]
            problems += _explain(name, field.annotation, told)
            refused |= set(keys)
    sure = {name: section for name, section in sections.items() if name not in unsure}
    given = not OmegaConf.is_interpolation(cfg.get("data", {}), "source")
    learned: dict[str, Any] = {}
    if sure.get("task_sequence") and "data" in sure and "evaluation" in sure:
        adopted, learned, more = apply_sequence(
            sure["task_sequence"],
            data=sure["data"],
            evaluation=sure["evaluation"],
            backbone=sure.get("backbone"),
            cfg=cfg,
            config_dir=config_dir,
        )
        problems += more
        sections |= adopted
        sure |= adopted
    found, more = validate_cross_section(sure | {"source_given": given}, cfg=cfg, config_dir=config_dir)
    problems += more
    if problems or len(sections) < len(fields):
        return ValidationResult(config=None, errors=problems, refused=refused)
    return ValidationResult(config=RunConfig(**sections | found | learned), errors=[], refused=set())


def _adapter(name: str) -> TypeAdapter[Any]:
    field = RunConfig.model_fields[name]
    annotated: Any = Annotated[(field.annotation, *field.metadata, name)]
    return TypeAdapter(annotated)


def _make_paths_absolute(values: dict[str, Any]) -> None:
    """A saved configuration means the same from any folder."""
    data, backbone, engine = (values.get(name) for name in ("data", "backbone", "engine"))
    places = [(values, "run_dir"), (data, "mirror_dir"), (data, "local_dir"), (backbone, "name_or_path")]
    places += [(engine, "hostfile"), (values, "frozen_adapter")]
    for section, key in places:
        if not isinstance(section, dict):
            continue
        text = section.get(key)
        if isinstance(text, str) and text and (key != "name_or_path" or is_local(text)):
            section[key] = os.path.abspath(Path(text).expanduser())


def _explain(name: str, annotation: Any, errors: list[dict[str, Any]]) -> list[str]:
    nested = getattr(annotation, "model_fields", None)
    if nested is None:
        details = [{**detail, "loc": (name, *detail["loc"])} for detail in errors]
        return describe_errors("", {name: annotation}, details)
    types = {field.alias or key: field.annotation for key, field in nested.items()}
    return describe_errors(name, types, errors)
