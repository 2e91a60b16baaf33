"""The options of a config group: their names, their values, and the nearest name to a typo."""

from __future__ import annotations

import copy
import difflib
from collections.abc import Iterable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

from imsm.utils.errors import UserError
from imsm.utils.paths import conf_folder


def list_options(group: str, *, config_dir: Path | None = None) -> list[str]:
    """The names that `group=` takes, sorted; one's own folder first, then the shipped one."""
    found = {path.stem for folder in _folders(group, config_dir) for path in folder.glob("*.yaml")}
    return sorted(found)


def load_option(group: str, name: str, *, config_dir: Path | None = None) -> dict[str, Any]:
    """The values of `<group>/<name>.yaml`, interpolations left as they are.

    Options of the same group in its defaults list are merged in, as Hydra does.

    Args:
        group: a folder of conf, e.g. "data".
        name: an option, e.g. "gsm8k".
        config_dir: a folder of options of one's own; it goes before the shipped one.

    Raises:
        UserError: there is no such option; the message lists them and the nearest name.
    """
    for folder in _folders(group, config_dir):
        path = folder / f"{name}.yaml"
        if path.is_file():
            values = copy.deepcopy(_read(path, path.stat().st_mtime_ns))
            return _with_defaults(values, group=group, name=name, config_dir=config_dir)
    raise UserError(unknown_option(group, name, list_options(group, config_dir=config_dir)))


def unknown_option(group: str, name: str, names: Iterable[str]) -> str:
    """One line about an option that does not exist: what there is, and the nearest name."""
    names = list(names)
    guess = closest_match(name, names)
    hint = f"; did you mean {group}={guess}?" if guess else ""
    return f"{group}={name}: no such option of {group} ({', '.join(names) or 'none'}){hint}"


def closest_match(word: str, words: Iterable[str]) -> str | None:
    """The word most like ``word``, or None if none is near."""
    lowered = {candidate.lower(): candidate for candidate in words}
    found = difflib.get_close_matches(word.lower(), lowered, n=1)
    return lowered[found[0]] if found else None


@lru_cache(maxsize=256)
def _read(path: Path, changed: int) -> dict[str, Any]:
    """A yaml's values; every member of a sweep asks for the same ones."""
    import yaml
    from omegaconf import OmegaConf

    try:
        values = OmegaConf.to_container(OmegaConf.load(path))
    except yaml.YAMLError as error:
        raise UserError(f"{path}: is no YAML ({' '.join(str(error).split())})") from error
    if not isinstance(values, dict):
        raise UserError(f"{path}: holds no mapping of keys to values")
    return {str(key): value for key, value in values.items()}


def _folders(group: str, config_dir: Path | None) -> Iterator[Path]:
    for root in (config_dir, conf_folder()):
        if root is not None and (root / group).is_dir():
            yield root / group


def _with_defaults(values: dict[str, Any], *, group: str, name: str, config_dir: Path | None) -> dict[str, Any]:
    """Merge the options that a defaults list names; overrides of other groups are Hydra's."""
    entries = [entry for entry in values.pop("defaults", []) if isinstance(entry, str)]
    if "_self_" not in entries:
        entries.append("_self_")
    merged: dict[str, Any] = {}
    for entry in entries:
        if entry == "_self_":
            merged.update(values)
        elif entry != name:
            merged.update(load_option(group, entry, config_dir=config_dir))
    return merged
