"""The options of a config group: their names and values."""

import copy
import difflib
from collections.abc import Iterable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

from imsm.utils.errors import UserError
from imsm.utils.paths import conf_folder


def list_options(group: str, *, config_dir: Path | None = None) -> list[str]:
    """Return the sorted names of a group's options, custom and shipped."""
    return sorted({path.stem for folder in _folders(group, config_dir) for path in folder.glob("*.yaml")})


def load_option(group: str, name: str, *, config_dir: Path | None = None) -> dict[str, Any]:
    """Return the values of `<group>/<name>.yaml` with unresolved interpolations.

    As in Hydra, options of the same group in its defaults list are merged in, and options in
    ``config_dir`` take precedence over the shipped ones.

    Raises:
        UserError: The option does not exist, or its yaml is invalid.
    """
    for folder in _folders(group, config_dir):
        path = folder / f"{name}.yaml"
        if path.is_file():
            # The cached dict is shared, and merging removes its defaults list.
            values = copy.deepcopy(_read_yaml(path, path.stat().st_mtime_ns))
            return _merge_defaults(values, group=group, name=name, config_dir=config_dir)
    raise UserError(unknown_option(group, name, list_options(group, config_dir=config_dir)))


def unknown_option(group: str, name: str, names: Iterable[str]) -> str:
    """Return the error message for an option that does not exist."""
    names = list(names)
    match = closest_match(name, names)
    hint = f"; did you mean {group}={match}?" if match else ""
    return f"{group}={name}: no such option of {group} ({', '.join(names) or 'none'}){hint}"


def closest_match(word: str, words: Iterable[str]) -> str | None:
    """Return the word most similar to ``word``, or None if none is similar."""
    lowered = {candidate.lower(): candidate for candidate in words}
    matches = difflib.get_close_matches(word.lower(), lowered, n=1)
    return lowered[matches[0]] if matches else None


@lru_cache(maxsize=256)
def _read_yaml(path: Path, modified: int) -> dict[str, Any]:
    """Read a yaml; ``modified`` is part of the cache key, as every job of a sweep reads the same files."""
    import yaml
    from omegaconf import OmegaConf  # takes 0.2 s, and `imsm run --help` needs only the names of the options

    try:
        values = OmegaConf.to_container(OmegaConf.load(path))
    except yaml.YAMLError as error:
        raise UserError(f"{path}: is not valid YAML ({' '.join(str(error).split())})") from error
    if not isinstance(values, dict):
        raise UserError(f"{path}: must be a mapping of keys to values")
    return {str(key): value for key, value in values.items()}


def _folders(group: str, config_dir: Path | None) -> Iterator[Path]:
    for root in (config_dir, conf_folder()):
        if root is not None and (root / group).is_dir():
            yield root / group


def _merge_defaults(values: dict[str, Any], *, group: str, name: str, config_dir: Path | None) -> dict[str, Any]:
    """Merge the options in the defaults list; mappings are overrides of other groups and left to Hydra."""
    entries = [entry for entry in values.pop("defaults", []) if isinstance(entry, str)]
    merged: dict[str, Any] = {}
    # Hydra's default since 1.1: without `_self_`, the option's own values come last and win.
    for entry in entries if "_self_" in entries else [*entries, "_self_"]:
        if entry == "_self_":
            merged.update(values)
        elif entry != name:
            merged.update(load_option(group, entry, config_dir=config_dir))
    return merged
