"""Look at a whole command line before Hydra starts anything: every member of a sweep, all problems.

Hydra itself stops at the first problem, accepts unknown keys behind a `+`, and finds what is wrong
with the third member of a sweep when the first two have run. Its loader is used here as it is.
"""

from __future__ import annotations

import copy
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra._internal.utils import create_automatic_config_search_path
from hydra.core.config_search_path import SearchPathQuery
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override
from hydra.core.utils import setup_globals
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from imsm.config.schema import RunConfig, TaskConfig
from imsm.config.validate import validate
from imsm.utils.messages import format_value, unknown_key_error
from imsm.utils.options import closest_match, unknown_option
from imsm.utils.paths import runs_root

_GROUPS = (*RunConfig.model_fields, "sweep")
_PLUGINS = {"submitit_local": "slurm", "submitit_slurm": "slurm", "optuna": "optuna"}
"""Launchers and sweepers that an extra of the project brings, and the extra."""
_ONE_RUN = (
    "a sweep's members that differ in how they are judged alone would be one run, and the last "
    "judgement alone would stay; give one value, and judge again with mode=evaluate"
)
_FREE = ("backbone.module_names", "backbone.architecture", "peft.target_roles_by_backbone", "peft.recipes")


@dataclass(frozen=True, kw_only=True)
class SweepSpec:
    """How the runs of a command line are chosen and started.

    Attributes:
        name: the option of the group `sweep`, or the launcher's where that was given itself.
        launcher: Hydra's name of what starts them; basic: this process.
        sweeper: Hydra's name of what chooses them; basic: all combinations.
        several: whether it is a sweep (`-m`).
        overrides: the command line's, without Hydra's own.
        members: the overrides of each member, as far as they are known before the start.
    """

    name: str = "none"
    launcher: str = "basic"
    sweeper: str = "basic"
    several: bool = False
    overrides: Sequence[str] = ()
    members: Sequence[Sequence[str]] = ()

    @property
    def kept(self) -> bool:
        """Whether its own folder stays: for the logs of other processes, and for a search."""
        return self.several and (self.launcher, self.sweeper) != ("basic", "basic")

    @property
    def searches(self) -> bool:
        """Whether each member depends on how those before it ended."""
        return self.several and self.sweeper == "optuna"


@dataclass(kw_only=True)
class ConfigComposer:
    """Checks overrides against the yamls of ``conf`` and of a folder of one's own.

    Args:
        conf: the shipped yamls.
        config_dir: a folder of options of one's own, which goes first.
        config_name: the yaml at the top.
    """

    conf: Path
    config_dir: Path | None = None
    config_name: str = "config"
    _bases: dict[tuple[str, ...], DictConfig] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Let Hydra find its plugins and the yamls."""
        setup_globals()
        path = create_automatic_config_search_path(None, None, str(self.conf))
        if self.config_dir is not None:
            anchor = SearchPathQuery(provider="schema")
            path.prepend("command-line", f"file://{self.config_dir}", anchor=anchor)
        self.loader = ConfigLoaderImpl(config_search_path=path)
        self.groups = [g for g in self.loader.list_groups("") if g in _GROUPS]
        self.parser = OverridesParser.create(config_loader=self.loader)

    def validate(self, overrides: Sequence[str], *, sweep: bool, composition_only: bool = False) -> list[str]:
        """A line per problem; none if everything can be carried out.

        Args:
            overrides: the command line's `key=value`s.
            sweep: whether it was given -m.
            composition_only: look at names only, not at values (`--cfg`, `--info`).
        """
        parsed, errors = self._parse(overrides)
        sweep = sweep or _wants_sweep(parsed)
        own = [override for override in parsed if override.is_hydra_override()]
        rest = [override for override in parsed if not override.is_hydra_override()]
        for override in [o for o in rest if o.key_or_group == "sweep"]:
            line = self._sweep_problem(override, sweep)
            if line is not None:
                errors.append(line)
                rest.remove(override)
        if sweep and self._chosen(own, rest)[1] != "basic":
            rest = [self._ends(override) for override in rest]
        elif sweep:
            for override in [o for o in rest if o.is_interval_sweep()]:
                errors.append(f"{override.input_line}: needs sweep=optuna, or values in a list")
                rest.remove(override)
        for override in [o for o in rest if _is_judging(o) and o.is_sweep_override()]:
            errors.append(f"{override.input_line}: {_ONE_RUN}")
            rest.remove(override)
        for override in [] if sweep else [o for o in rest if o.is_sweep_override()]:
            errors.append(f"{override.input_line}: several values need a sweep; add -m")
            rest.remove(override)
        hydra_lines = [str(override.input_line) for override in own]
        members = self._members(rest, errors)
        errors += _shared_folder(members)
        if not composition_only and not all(_is_planned(member) for member in members):
            errors += _runs_root_problem()
        for member in members:
            errors += self._member(member, hydra_lines, composition_only)
        return list(dict.fromkeys(errors))

    def sweep_spec(self, overrides: Sequence[str], *, sweep: bool) -> SweepSpec:
        """How the runs of a command line are chosen and started; ask `problems` first.

        Args:
            overrides: the command line's `key=value`s.
            sweep: whether it was given -m.
        """
        parsed = self._parse(overrides)[0]
        own = [override for override in parsed if override.is_hydra_override()]
        rest = [override for override in parsed if not override.is_hydra_override()]
        several = sweep or _wants_sweep(parsed)
        launcher, sweeper = self._chosen(own, rest) if several else ("basic", "basic")
        given = [str(o.value()) for o in rest if o.key_or_group == "sweep"]
        members = self._members(rest, []) if sweeper == "basic" else []
        return SweepSpec(
            name=given[-1] if given else launcher if sweeper == "basic" else sweeper,
            launcher=launcher,
            sweeper=sweeper,
            several=several,
            overrides=[str(override.input_line) for override in rest],
            members=[[str(override.input_line) for override in member] for member in members],
        )

    def compose_all(self, overrides: Sequence[str]) -> list[tuple[dict[str, str], DictConfig]]:
        """Each run of a sweep: its overrides by key, and what they compose.

        Ask `problems` first: what is wrong is left out here.
        """
        parsed = [o for o in self._parse(overrides)[0] if not o.is_hydra_override()]
        found = []
        for member in self._members(parsed, []):
            lines = {o.key_or_group: str(o.input_line).partition("=")[2] for o in member}
            cfg = self.loader.load_configuration(
                config_name=self.config_name, overrides=[str(o.input_line) for o in member], run_mode=RunMode.RUN
            )
            OmegaConf.set_struct(cfg, False)
            del cfg["hydra"]
            found.append((lines, cfg))
        return found

    def _parse(self, overrides: Sequence[str]) -> tuple[list[Override], list[str]]:
        parsed, errors = [], []
        for text in overrides:
            if "=" not in text and not text.startswith("~"):
                errors.append(self._not_an_override(text))
                continue
            try:
                parsed += self.parser.parse_overrides([text])
            except HydraException as error:
                errors.append(
                    f"{text}: cannot be read ({_first_lines(error)}); put a value with special "
                    "characters in quotes, e.g. 'data.mirror_dir=\"a b\"'"
                )
        return parsed, errors

    def _not_an_override(self, text: str) -> str:
        options = {f"{group}={name}": name for group, name in self._all_options()}
        exact = [written for written, name in options.items() if name == text]
        guess = closest_match(text, options.values())
        near = [written for written, name in options.items() if name == guess]
        hint = f"; did you mean {' or '.join(exact or near)}?" if exact or near else ""
        return f"{text}: is not of the form key=value{hint or '; --help shows what there is'}"

    def _chosen(self, own: list[Override], rest: list[Override]) -> tuple[str, str]:
        """The names of the launcher and the sweeper; basic if they cannot be composed."""
        lines = [str(o.input_line) for o in (*own, *rest) if o.key_or_group == "sweep" or o in own]
        if not lines:
            return "basic", "basic"
        try:
            choices = self._base(tuple(lines)).hydra.runtime.choices
        except (HydraException, OmegaConfBaseException, yaml.YAMLError, OSError):
            return "basic", "basic"  # told where the members are composed
        return str(choices["hydra/launcher"]), str(choices["hydra/sweeper"])

    def _ends(self, override: Override) -> Override:
        """For a search between two values: these two, which stand for all."""
        if not override.is_interval_sweep():
            return override
        value = override.value()
        assert isinstance(value, IntervalSweep)
        text = f"{override.key_or_group}=choice({value.start},{value.end})"
        return self.parser.parse_overrides([text])[0]

    def _sweep_problem(self, override: Override, sweep: bool) -> str | None:
        """What is wrong with a choice of how to sweep, or None."""
        if override.is_sweep_override():
            names = ", ".join(self.loader.get_group_options("sweep"))
            return f"{override.input_line}: sweep takes the name of one option ({names})"
        if not sweep and override.value() != "none":
            return f"{override.input_line}: is for a sweep; add -m, or leave it out"
        return None

    def _all_options(self) -> list[tuple[str, str]]:
        return [(group, n) for group in self.groups for n in self.loader.get_group_options(group)]

    def _members(self, overrides: list[Override], errors: list[str]) -> list[list[Override]]:
        if not any(override.is_sweep_override() for override in overrides):
            return [overrides]
        try:
            batches = BasicSweeper.split_arguments(overrides, None)
        except HydraException as error:
            errors.append(_first_lines(error))
            return []
        members = [member for batch in batches for member in batch]
        if not members:
            errors.append("the sweep has no member: a pattern in it matches nothing")
        return [self.parser.parse_overrides(member) for member in members]

    def _member(self, overrides: list[Override], hydra_lines: list[str], composition_only: bool) -> list[str]:
        groups = [override for override in overrides if self._is_group(override)]
        values = [override for override in overrides if not self._is_group(override)]
        errors: list[str] = []
        chosen: dict[str, str] = {}
        unsure: set[str] = set()
        for override in groups:
            line = self._group_problem(override, seen=chosen)
            if line is None:
                chosen[override.key_or_group] = str(override.input_line)
            else:
                errors.append(line)
                unsure.add(override.key_or_group)
        try:
            base = self._base((*hydra_lines, *chosen.values()))
        except (HydraException, OmegaConfBaseException, yaml.YAMLError, OSError) as error:
            return [*errors, _without_plugin(error) or _first_lines(error)]
        tree = OmegaConf.to_container(base, resolve=False)
        errors += _beside_a_sequence(overrides)
        good = []
        for override in values:
            if override.key_or_group.split(".")[0] in unsure:
                continue
            line = _key_problem(override, tree)
            if line is None:
                good.append(override)
            else:
                errors.append(line)
        return errors + _value_problems(base, good, self.config_dir, frozenset(unsure), composition_only)

    def _is_group(self, override: Override) -> bool:
        return override.key_or_group in self.groups and override.package is None

    def _group_problem(self, override: Override, *, seen: dict[str, str]) -> str | None:
        group, names = override.key_or_group, None
        names = self.loader.get_group_options(group)
        listed = ", ".join(names)
        if override.is_delete():
            return f"~{group}: a run needs one option of {group} ({listed})"
        value = override.value()
        if override.is_add() or override.is_force_add():
            return f"{override.input_line}: write {group}={format_value(value)} without a +"
        if isinstance(value, list | dict):
            return f"{override.input_line}: {group} takes the name of one option ({listed})"
        if str(value) not in names:
            return unknown_option(group, format_value(value), names)
        if group in seen and seen[group] != override.input_line:
            return f"{override.input_line}: {seen[group]} was given as well; keep one of them"
        return None

    def _base(self, lines: tuple[str, ...]) -> DictConfig:
        """The composition of a choice of options, before values; each choice is composed once."""
        if lines not in self._bases:
            self._bases[lines] = self.loader.load_configuration(
                config_name=self.config_name, overrides=list(lines), run_mode=RunMode.RUN
            )
        return self._bases[lines]


def _beside_a_sequence(overrides: list[Override]) -> list[str]:
    """What describes one dataset would be lost: a sequence names its datasets itself."""
    given = [override for override in overrides if override.key_or_group == "task_sequence"]
    if not given or given[-1].value() is None:
        return []
    one = {f"data.{name}" for name in TaskConfig.model_fields}
    return [
        f"{override.input_line}: {given[-1].input_line} names its tasks itself, each with its own "
        "keys; leave one of the two out"
        for override in overrides
        if override.key_or_group == "data" or ".".join(override.key_or_group.split(".")[:2]) in one
    ]


def _wants_sweep(parsed: list[Override]) -> bool:
    """Whether a sweep was asked for in words, in place of -m."""
    given = [o.value() for o in parsed if o.key_or_group == "hydra.mode"]
    return given[-1:] == [RunMode.MULTIRUN.name]


def _without_plugin(error: Exception) -> str | None:
    """The line about a launcher or a sweeper that an extra would bring, or None."""
    found = re.search(r"Could not find 'hydra/(launcher|sweeper)/(\w+)'", str(error))
    if found is None or found[2] not in _PLUGINS:
        return None
    extra = _PLUGINS[found[2]]
    return f"{found[2]}: this {found[1]} is not installed; pip install -c constraints.txt -e '.[{extra}]' brings it"


def _is_judging(override: Override) -> bool:
    """Whether it chooses how a run is judged, which does not make it another run."""
    return override.key_or_group.split(".")[0] == "evaluation"


def _shared_folder(members: list[list[Override]]) -> list[str]:
    """Members of a sweep that would write into one folder."""
    given = [o for member in members for o in member if o.key_or_group == "run_dir"]
    folders = [format_value(override.value()) for override in given if override.value() is not None]
    return [
        f"run_dir={folder}: {folders.count(folder)} members of the sweep would share it; leave it "
        "out, each has a folder of its own then"
        for folder in dict.fromkeys(folders)
        if folders.count(folder) > 1
    ]


def _is_planned(member: list[Override]) -> bool:
    """Whether a member only wants its plan: that writes nothing."""
    given = [override.value() for override in member if override.key_or_group == "mode"]
    return given[-1:] == ["plan"]


def _runs_root_problem() -> list[str]:
    """The root of all runs must be there, or makeable; nothing is made here."""
    root = runs_root()
    there = next(place for place in (root, *root.parents) if os.path.exists(place))
    if there.is_dir() and os.access(there, os.W_OK | os.X_OK):
        return []
    reason = f"{there} cannot be written to" if there.is_dir() else f"{there} is no folder"
    return [f"IMSM_RUNS={root}: runs cannot be kept there, {reason}; choose another folder"]


def _value_problems(
    base: DictConfig,
    overrides: list[Override],
    config_dir: Path | None,
    unsure: frozenset[str],
    composition_only: bool,
) -> list[str]:
    """Problems of the values; those with refused values are looked at again without them."""
    errors: list[str] = []
    while True:
        cfg = copy.deepcopy(base)
        try:
            ConfigLoaderImpl._apply_overrides_to_config(overrides, cfg)
        except (HydraException, OmegaConfBaseException) as error:
            return [*errors, _first_lines(error)]
        OmegaConf.set_struct(cfg, False)
        del cfg["hydra"]
        if composition_only:
            return errors
        examined = validate(cfg, config_dir=config_dir, unsure=unsure)
        errors += examined.errors
        kept = [o for o in overrides if o.key_or_group not in _prefixes(examined.refused)]
        if len(kept) == len(overrides):
            return errors
        overrides = kept


def _prefixes(keys: set[str]) -> set[str]:
    """Every key and all that it lies in: a list's item was given as the list."""
    parts = [key.split(".") for key in keys]
    return {".".join(part[:n]) for part in parts for n in range(1, len(part) + 1)}


def _key_problem(override: Override, tree: Any) -> str | None:
    """What is wrong with the key of a value, or None."""
    key = override.key_or_group
    parts = key.split(".")
    depth, node = 0, tree
    while depth < len(parts) and isinstance(node, dict) and parts[depth] in node:
        node = node[parts[depth]]
        depth += 1
    there = depth == len(parts)
    if override.is_add() and there and not isinstance(node, dict | list):
        return f"{override.input_line}: the key is there already; leave the + out"
    if override.is_force_add() or override.is_add() or there:
        return None
    if override.is_delete():
        return f"{override.input_line}: there is no such key"
    if isinstance(node, list) or not isinstance(node, dict):
        return f"{override.input_line}: {'.'.join(parts[:depth])} holds no keys"
    if depth < len(parts) - 1:
        parts = parts[: depth + 1]
    owner, value = ".".join(parts[:depth]), override.value()
    names = [name for name in node if name not in ("hydra", "_target_")]
    line = unknown_key_error(owner, parts[depth], value, names)
    if not owner and "did you mean" not in line:
        owners = [section for section in names if _has(node, section, key)]
        elsewhere = [f"{section}.{key}={format_value(value)}" for section in owners]
        line += f"; did you mean {' or '.join(elsewhere)}?" if elsewhere else ""
    if owner.startswith(_FREE):
        line += f"; +{key}={format_value(value)} adds it"
    return line


def _has(tree: dict[str, Any], section: str, key: str) -> bool:
    return isinstance(tree[section], dict) and key in tree[section]


def _first_lines(error: Exception) -> str:
    """An error of a library as one line, without its links."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(line for line in lines[:4] if not line.startswith(("See http", "Config search")))
