"""Compose overrides with Hydra and find every error before the first run starts.

Hydra alone stops at the first error, accepts unknown keys after a `+`, and reports an error in the
third job of a sweep only after the first two have run.
"""

import copy
import os
import re
import shlex
from collections.abc import Sequence
from pathlib import Path

import yaml
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, Override
from hydra.core.utils import env_override
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from imsm.config.overrides import (
    check_blanks,
    check_key,
    check_option,
    check_repeated,
    check_task_sequence,
    not_an_override,
    not_parsed,
)
from imsm.config.schema import RunConfig
from imsm.config.sweep import SweepSpec, expand_jobs, shared_run_dir_errors
from imsm.utils.errors import UserError
from imsm.utils.options import list_options
from imsm.utils.paths import conf_folder, runs_root

CONFIG_DIR = "IMSM_CONFIG_DIR"
"""Environment variable from which the plugin in `hydra_plugins` reads the folder of `--config-dir`."""
_GROUPS = (*RunConfig.model_fields, "sweep")
_EXTRAS = {"submitit_local": "slurm", "submitit_slurm": "slurm", "optuna": "optuna"}
"""Hydra's name of a launcher or sweeper -> the extra of this project that installs it."""
_GATE_ONLY = ("gate.", "trainer.gate_learning_rate.")
_TRAINING_ONLY = (
    *("peft.", "trainer.", "rehearsal.", "data.max_train_examples.", "frozen_adapter."),
    "hidden_state_cache",
)
"""Prefixes of the keys (with a final dot) that only a run with a gate, or with training, reads."""
_MODEL_LOSS_ONLY = (
    *("trainer.token_weight.", "trainer.kl_beta.", "trainer.kl_mask_target."),
    *("rehearsal.loss.", "rehearsal.weight."),
)
"""Keys that are not read by `gate.loss=route` on a frozen adapter, which computes no logits."""
_COMPOSITION_ERRORS = (HydraException, OmegaConfBaseException, yaml.YAMLError, OSError)


class ConfigComposer:
    """Composes overrides from the yamls of `--config-dir`, which take precedence, and of `conf/`."""

    def __init__(self, config_dir: Path | None = None) -> None:
        self.config_dir = config_dir
        environment = {} if config_dir is None else {CONFIG_DIR: str(config_dir)}
        # Hydra's search path is fixed when the loader is created; the environment is not needed afterwards.
        with env_override(environment), initialize_config_dir(str(conf_folder()), version_base="1.3"):
            self._loader = GlobalHydra.instance().config_loader()
        self._parser = OverridesParser.create(config_loader=self._loader)
        # not Hydra's get_group_options, which copies all of its search path for each group
        options = {group: list_options(group, config_dir=config_dir) for group in sorted(_GROUPS)}
        self._options = {group: names for group, names in options.items() if names}
        self._compositions: dict[tuple[str, ...], DictConfig] = {}

    def validate(self, overrides: Sequence[str], *, sweep: bool, composition_only: bool = False) -> list[str]:
        """Return one line per error of a command line; all value errors of a run are included.

        ``sweep`` means `-m`; with ``composition_only`` (`--cfg`, `--info`) values are not checked.
        """
        try:
            spec = self.sweep_spec(overrides, sweep=sweep)
        except UserError as error:
            return [str(error)]
        errors = shared_run_dir_errors(spec)
        # A plan writes nothing, so it may run on a machine whose runs folder is read-only.
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

        Raises:
            UserError: an override cannot be parsed, or its sweep is not possible.
        """
        check_blanks(overrides)
        parsed = [self._parse(text) for text in overrides]
        hydra = [override for override in parsed if override.is_hydra_override()]
        own = [override for override in parsed if not override.is_hydra_override()]
        check_repeated([override for override in own if override.key_or_group not in self._options])
        # Hydra runs a sweep without -m as well if its own mode is overridden; the last override wins.
        sweep = sweep or [o.value() for o in hydra if o.key_or_group == "hydra.mode"][-1:] == [RunMode.MULTIRUN.name]
        if not sweep:
            self._check_commas(own)
        options = [override for override in own if override.key_or_group == "sweep"]
        for override in options:
            check_option(override, self._options["sweep"], {})
            if not sweep and override.value() != "none":
                raise UserError(f"{override.input_line}: needs a sweep; add -m, or remove it")
        launcher, sweeper = self._plugins([*hydra, *options]) if sweep else ("basic", "basic")
        given = [str(override.value()) for override in options]
        return SweepSpec(
            name=given[-1] if given else launcher if sweeper == "basic" else sweeper,
            launcher=launcher,
            sweeper=sweeper,
            several=sweep,
            overrides=[str(override.input_line) for override in own],
            hydra_overrides=[str(override.input_line) for override in hydra],
            jobs=expand_jobs(own, sweep=sweep, searches=sweeper != "basic"),
        )

    def _check_commas(self, overrides: Sequence[Override]) -> None:
        """Explain a comma in a text, which Hydra reads as several values of a sweep."""
        for override in overrides:
            value = override.value()
            is_text = isinstance(value, ChoiceSweep) and all(isinstance(each, str) for each in value.list)
            if is_text and override.key_or_group not in self._options:
                line, (key, _, text) = override.input_line, str(override.input_line).partition("=")
                quoted = shlex.quote(f'{key}="{text}"')
                raise UserError(
                    f"{line}: a comma separates the values of a sweep; add -m, or quote the text: {quoted}"
                )

    def without_effect(self, overrides: Sequence[str]) -> list[str]:
        """Return the overrides of a valid run that its method or its gate's loss does not use."""
        cfg = self.compose(overrides)
        method = cfg.method
        unused: tuple[str, ...] = () if method.stream == "interwoven" else _GATE_ONLY
        unused += () if method.trainable else _TRAINING_ONLY
        # in joint training the adapter still learns from the model's loss
        routes_only = cfg.frozen_adapter is not None and cfg.gate.get("loss") == "route"
        unused += _MODEL_LOSS_ONLY if routes_only and method.stream == "interwoven" else ()
        parsed = [self._parse(text) for text in overrides]
        return [str(o.input_line) for o in parsed if f"{o.key_or_group}.".startswith(unused)]

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
            if override.is_hydra_override() or override.package is not None:
                choices[str(override.input_line)] = str(override.input_line)
            elif override.key_or_group in self._options:
                check_option(override, self._options[override.key_or_group], choices)
                choices[override.key_or_group] = str(override.input_line)
            else:
                values.append(override)
        # Only the choice of options is composed by Hydra, so that jobs with other values reuse it.
        cfg = copy.deepcopy(self._composition(tuple(choices.values())))
        OmegaConf.set_struct(cfg, False)  # keys are checked below, with better messages than Hydra's
        del cfg["hydra"]
        check_task_sequence(overrides)
        for override in values:
            check_key(override, OmegaConf.to_container(cfg))
            if override.is_delete():
                parent, _, name = override.key_or_group.rpartition(".")
                del (OmegaConf.select(cfg, parent) if parent else cfg)[name]
            else:
                OmegaConf.update(cfg, override.key_or_group, override.value())
        return cfg

    def _value_errors(self, overrides: Sequence[Override], cfg: DictConfig) -> list[str]:
        """Validate repeatedly without the rejected overrides: a rejected value hides errors that depend on it."""
        from imsm.config.validate import validate  # imports PEFT, which takes seconds

        errors: list[str] = []
        while True:
            result = validate(cfg, config_dir=self.config_dir)
            errors += result.errors
            kept = [override for override in overrides if not self._is_rejected(override, result.rejected)]
            if len(kept) == len(overrides):
                return errors
            overrides, cfg = kept, self._compose(kept)

    def _is_rejected(self, override: Override, keys: set[str]) -> bool:
        """Return whether a value, or an item of it, was rejected."""
        key = override.key_or_group
        return key not in self._options and any(f"{rejected}.".startswith(f"{key}.") for rejected in keys)

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
            raise UserError(not_an_override(text, self._options))
        try:
            (override,) = self._parser.parse_overrides([text])
            return override
        except HydraException as error:
            raise UserError(not_parsed(text, _one_line(error), self._parses)) from error

    def _parses(self, text: str) -> bool:
        try:
            return len(self._parser.parse_overrides([text])) == 1
        except HydraException:
            return False


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
