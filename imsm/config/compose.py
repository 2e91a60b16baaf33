"""Compose overrides with Hydra and find every error before the first run starts.

Hydra alone stops at the first error, accepts unknown keys after a `+`, and reports an error in the
third job of a sweep only after the first two have run.
"""

from __future__ import annotations

import copy
import itertools
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override
from hydra.core.utils import env_override
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from imsm.config.schema import RunConfig
from imsm.config.validate import validate
from imsm.data.task import Task
from imsm.utils.errors import UserError
from imsm.utils.messages import format_value, unknown_key_error
from imsm.utils.options import closest_match, unknown_option
from imsm.utils.paths import conf_folder, runs_root

CONFIG_DIR = "IMSM_CONFIG_DIR"
"""Environment variable from which the plugin in `hydra_plugins` reads the folder of `--config-dir`."""
_GROUPS = (*RunConfig.model_fields, "sweep")
_EXTRAS = {"submitit_local": "slurm", "submitit_slurm": "slurm", "optuna": "optuna"}
"""Hydra's name of a launcher or sweeper -> the extra of this project that installs it."""
_OPEN_MAPPINGS = ("backbone.module_names", "backbone.architecture", "peft.target_roles_by_backbone", "peft.recipes")
_COMPOSITION_ERRORS = (HydraException, OmegaConfBaseException, yaml.YAMLError, OSError)


@dataclass(frozen=True, kw_only=True)
class SweepSpec:
    """The jobs of a command line and how they are started.

    Attributes:
        name: option of the group `sweep`, or Hydra's name of the launcher or sweeper.
        launcher: Hydra's name of the launcher; `basic` runs the jobs in this process.
        sweeper: Hydra's name of the sweeper; `basic` runs all combinations.
        several: True for a sweep (`-m`).
        overrides: overrides of the command line, without Hydra's own.
        hydra_overrides: Hydra's own overrides (`hydra.*`, `hydra/*`).
        jobs: overrides of each job; for a search, the combinations that bound it.
    """

    name: str = "none"
    launcher: str = "basic"
    sweeper: str = "basic"
    several: bool = False
    overrides: Sequence[str] = ()
    hydra_overrides: Sequence[str] = ()
    jobs: Sequence[Sequence[str]] = ()

    @property
    def keeps_folder(self) -> bool:
        """Whether the sweep's folder is kept: for the logs of other processes, or for a search."""
        return self.several and (self.launcher, self.sweeper) != ("basic", "basic")

    @property
    def searches(self) -> bool:
        """Whether the sweeper selects each job from the results of the previous ones."""
        return self.several and self.sweeper == "optuna"


class ConfigComposer:
    """Composes overrides from the yamls of `conf/` and of the user's folder.

    Args:
        config_dir: folder of `--config-dir`; its options take precedence over the shipped ones.
    """

    def __init__(self, config_dir: Path | None = None) -> None:
        self.config_dir = config_dir
        environment = {} if config_dir is None else {CONFIG_DIR: str(config_dir)}
        with env_override(environment), initialize_config_dir(str(conf_folder()), version_base="1.3"):
            self._loader = GlobalHydra.instance().config_loader()
        self._parser = OverridesParser.create(config_loader=self._loader)
        self._options = {g: self._loader.get_group_options(g) for g in self._loader.list_groups("") if g in _GROUPS}
        self._compositions: dict[tuple[str, ...], DictConfig] = {}

    def validate(self, overrides: Sequence[str], *, sweep: bool, composition_only: bool = False) -> list[str]:
        """Return one line per error of a command line; all value errors of a run are included.

        Args:
            overrides: `key=value` arguments.
            sweep: True if `-m` was given.
            composition_only: check names but not values (`--cfg`, `--info`).
        """
        try:
            spec = self.sweep_spec(overrides, sweep=sweep)
        except UserError as error:
            return [str(error)]
        errors = _shared_run_dirs(spec)
        if not composition_only and not all("mode=plan" in job for job in spec.jobs):
            errors += _runs_root_errors()
        for job in spec.jobs:
            try:
                parsed = [self._parse(text) for text in (*spec.hydra_overrides, *job)]
                composed = self._compose(parsed)
                errors += [] if composition_only else self._value_errors(parsed, composed)
            except UserError as error:
                errors.append(str(error))
        return list(dict.fromkeys(errors))

    def sweep_spec(self, overrides: Sequence[str], *, sweep: bool) -> SweepSpec:
        """Expand a command line into its jobs.

        Args:
            overrides: `key=value` arguments.
            sweep: True if `-m` was given.

        Raises:
            UserError: an override cannot be parsed, or its sweep is not possible.
        """
        parsed = [self._parse(text) for text in overrides]
        hydra = [override for override in parsed if override.is_hydra_override()]
        own = [override for override in parsed if not override.is_hydra_override()]
        sweep = sweep or [o.value() for o in hydra if o.key_or_group == "hydra.mode"][-1:] == [RunMode.MULTIRUN.name]
        options = [override for override in own if override.key_or_group == "sweep"]
        for override in options:
            self._check_sweep_option(override, sweep)
        launcher, sweeper = self._plugins([*hydra, *options]) if sweep else ("basic", "basic")
        given = [str(override.value()) for override in options]
        return SweepSpec(
            name=given[-1] if given else launcher if sweeper == "basic" else sweeper,
            launcher=launcher,
            sweeper=sweeper,
            several=sweep,
            overrides=[str(override.input_line) for override in own],
            hydra_overrides=[str(override.input_line) for override in hydra],
            jobs=_combinations(own, sweep=sweep, searches=sweeper != "basic"),
        )

    def compose(self, overrides: Sequence[str]) -> DictConfig:
        """Compose one run.

        Raises:
            UserError: the first error in a name or in the syntax; values are not validated.
        """
        return self._compose([self._parse(text) for text in overrides])

    def _compose(self, overrides: Sequence[Override]) -> DictConfig:
        choices: dict[str, str] = {}
        values = []
        for override in overrides:
            if override.is_hydra_override():
                choices[str(override.input_line)] = str(override.input_line)
            elif override.key_or_group in self._options and override.package is None:
                self._check_option(override, choices)
                choices[override.key_or_group] = str(override.input_line)
            else:
                values.append(override)
        cfg = copy.deepcopy(self._composition(tuple(choices.values())))
        OmegaConf.set_struct(cfg, False)
        del cfg["hydra"]
        _check_task_sequence(overrides)
        for override in values:
            _check_key(override, OmegaConf.to_container(cfg))
            if override.is_delete():
                parent, _, name = override.key_or_group.rpartition(".")
                del (OmegaConf.select(cfg, parent) if parent else cfg)[name]
            else:
                OmegaConf.update(cfg, override.key_or_group, override.value())
        return cfg

    def _value_errors(self, overrides: Sequence[Override], cfg: DictConfig) -> list[str]:
        """Validate repeatedly without the rejected overrides: a rejected value hides errors that depend on it."""
        errors: list[str] = []
        while True:
            result = validate(cfg, config_dir=self.config_dir)
            errors += result.errors
            # a rejected item of a list was given as the list
            rejected = {parent for key in result.refused for parent in itertools.accumulate(key.split("."), _join)}
            kept = [override for override in overrides if override.key_or_group not in rejected]
            if len(kept) == len(overrides):
                return errors
            overrides, cfg = kept, self._compose(kept)

    def _composition(self, choices: tuple[str, ...]) -> DictConfig:
        """Compose a choice of options, without values; cached because composing takes about 0.1 s."""
        if choices not in self._compositions:
            try:
                self._compositions[choices] = self._loader.load_configuration(
                    config_name="config", overrides=list(choices), run_mode=RunMode.RUN
                )
            except _COMPOSITION_ERRORS as error:
                raise UserError(_missing_plugin(error) or _one_line(error)) from error
        return self._compositions[choices]

    def _plugins(self, overrides: Sequence[Override]) -> tuple[str, str]:
        """Return Hydra's names of the launcher and the sweeper."""
        choices = self._composition(tuple(str(o.input_line) for o in overrides)).hydra.runtime.choices
        return str(choices["hydra/launcher"]), str(choices["hydra/sweeper"])

    def _parse(self, text: str) -> Override:
        if "=" not in text and not text.startswith("~"):
            words = {f"{group}={name}": name for group, names in self._options.items() for name in names}
            name = text if text in words.values() else closest_match(text, words.values())
            near = [word for word, option in words.items() if option == name]
            hint = f"; did you mean {' or '.join(near)}?" if near else "; see imsm run --help"
            raise UserError(f"{text}: must have the form key=value{hint}")
        try:
            return self._parser.parse_override(text)
        except HydraException as error:
            raise UserError(
                f"{text}: cannot be parsed ({_one_line(error)}); quote a value with special characters, "
                "e.g. 'data.mirror_dir=\"a b\"'"
            ) from error

    def _check_sweep_option(self, override: Override, sweep: bool) -> None:
        if override.is_sweep_override():
            names = ", ".join(self._options["sweep"])
            raise UserError(f"{override.input_line}: must be one option of sweep ({names})")
        if not sweep and override.value() != "none":
            raise UserError(f"{override.input_line}: needs a sweep; add -m, or remove it")

    def _check_option(self, override: Override, choices: dict[str, str]) -> None:
        """Check the override of a config group.

        Raises:
            UserError: it does not select exactly one existing option.
        """
        group, line = override.key_or_group, override.input_line
        names = self._options[group]
        listed = ", ".join(names)
        if override.is_delete():
            raise UserError(f"~{group}: a run needs one option of {group} ({listed})")
        value = override.value()
        if override.is_add() or override.is_force_add():
            raise UserError(f"{line}: write {group}={format_value(value)} without a +")
        if isinstance(value, list | dict):
            raise UserError(f"{line}: must be one option of {group} ({listed})")
        if str(value) not in names:
            raise UserError(unknown_option(group, format_value(value), names))
        if choices.get(group, line) != line:
            raise UserError(f"{line}: conflicts with {choices[group]}; remove one of them")


def _combinations(overrides: Sequence[Override], *, sweep: bool, searches: bool) -> list[list[str]]:
    """Expand sweep overrides into the overrides of each job, in the order of Hydra's basic sweeper.

    Raises:
        UserError: several values without `-m`, or values that cannot be swept.
    """
    if not any(override.is_sweep_override() for override in overrides):
        return [[str(override.input_line) for override in overrides]]
    values: dict[str, list[str]] = {}
    for override in overrides:
        key, line = override.get_key_element(), override.input_line
        value = override.value()
        if not override.is_sweep_override():
            texts = [override.get_value_element_as_str()]
        elif override.key_or_group.split(".")[0] == "evaluation":
            # evaluation settings are not part of a run's name
            raise UserError(f"{line}: jobs that differ only in evaluation would overwrite each other's result; "
                            "give one value, and evaluate again with mode=evaluate")  # fmt: skip
        elif not sweep:
            raise UserError(f"{line}: several values need a sweep; add -m")
        elif isinstance(value, IntervalSweep):
            if not searches:
                raise UserError(f"{line}: an interval needs sweep=optuna; or list the values")
            texts = [str(value.start), str(value.end)]  # validation of the endpoints covers the interval
        else:
            texts = list(override.sweep_string_iterator())
        values[key] = [f"{key}={text}" for text in texts]
    jobs = [list(job) for job in itertools.product(*values.values())]
    if not jobs:
        raise UserError("the sweep has no jobs: a glob matches no option; see imsm run --help")
    return jobs


def _check_key(override: Override, tree: Any) -> None:
    """Check that the key of a value exists, or that `+` adds a new one.

    Raises:
        UserError: with the nearest name.
    """
    key, line, parts = override.key_or_group, override.input_line, override.key_or_group.split(".")
    depth, node = 0, tree
    while depth < len(parts) and isinstance(node, dict) and parts[depth] in node:
        node = node[parts[depth]]
        depth += 1
    if depth == len(parts) and override.is_add() and not isinstance(node, dict | list):
        raise UserError(f"{line}: the key exists already; remove the +")
    if depth == len(parts) or override.is_add() or override.is_force_add():
        return
    if override.is_delete():
        raise UserError(f"{line}: no such key")
    if not isinstance(node, dict):
        raise UserError(f"{line}: {'.'.join(parts[:depth])} has no keys")
    owner, written = ".".join(parts[:depth]), f"{key}={format_value(override.value())}"
    names = [name for name in node if name != "_target_"]
    message = unknown_key_error(owner, parts[depth], override.value(), names)
    if not owner and "did you mean" not in message:
        near = [f"{name}.{written}" for name in names if isinstance(node[name], dict) and parts[0] in node[name]]
        message += f"; did you mean {' or '.join(near)}?" if near else ""
    if owner.startswith(_OPEN_MAPPINGS):
        message += f"; +{written} adds it"
    raise UserError(message)


def _check_task_sequence(overrides: Sequence[Override]) -> None:
    """Reject settings of one dataset next to a task sequence, which would be ignored."""
    sequence = [override for override in overrides if override.key_or_group == "task_sequence"]
    if not sequence or sequence[-1].value() is None:
        return
    keys = {f"data.{name}" for name in Task.model_fields}
    for override in overrides:
        if override.key_or_group == "data" or ".".join(override.key_or_group.split(".")[:2]) in keys:
            raise UserError(
                f"{override.input_line}: {sequence[-1].input_line} selects the datasets; remove one of the two"
            )


def _shared_run_dirs(spec: SweepSpec) -> list[str]:
    """Return an error for each `run_dir` that several jobs would write to."""
    given = [text for job in spec.jobs for text in job if text.startswith("run_dir=") and text != "run_dir=null"]
    return [
        f"{text}: {given.count(text)} jobs of the sweep would share it; remove it, each job then has its own folder"
        for text in dict.fromkeys(given)
        if given.count(text) > 1
    ]


def _runs_root_errors() -> list[str]:
    """Check that the runs' folder exists or can be created; nothing is created here."""
    root = runs_root()
    existing = next(path for path in (root, *root.parents) if os.path.exists(path))
    if existing.is_dir() and os.access(existing, os.W_OK | os.X_OK):
        return []
    reason = f"{existing} is not writable" if existing.is_dir() else f"{existing} is not a directory"
    return [f"IMSM_RUNS={root}: {reason}; choose another folder"]


def _missing_plugin(error: Exception) -> str | None:
    """Return the message for a launcher or sweeper whose extra is not installed, or None."""
    found = re.search(r"Could not find 'hydra/(launcher|sweeper)/(\w+)'", str(error))
    if found is None or found[2] not in _EXTRAS:
        return None
    return f"{found[2]}: this {found[1]} is not installed; pip install -c constraints.txt -e '.[{_EXTRAS[found[2]]}]'"


def _one_line(error: Exception) -> str:
    """Return a library's error as one line, without links."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(line for line in lines[:4] if not line.startswith(("See http", "Config search")))


def _join(parent: str, name: str) -> str:
    return f"{parent}.{name}"
