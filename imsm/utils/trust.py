"""Import the modules that configurations and saved files name, only if they are trusted.

A dotted name is trusted if its module belongs to a given package of imsm or to the `--config-dir` of this command
line. The rule is the same for the command line, yamls, and files of run and model folders: a downloaded folder is
data, so it cannot name other code. Every import by name goes through `import_trusted` or `import_trusted_module`.
"""

import importlib
import inspect
import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from imsm.utils.errors import UserError
from imsm.utils.messages import did_you_mean
from imsm.utils.options import closest_match

ADAPTERS = "imsm.models.adapters"
BASELINES = "imsm.studies.baselines"
GATES = "imsm.models"
METRICS = "imsm.evaluation.metrics"
RESOLVERS = "imsm.models.backbones"
TASKS = "imsm.data.tasks"

_trusted_folders: list[Path] = []


def trust_folder(folder: Path) -> None:
    """Trust the modules in a folder and make them importable; called for `--config-dir` only."""
    # absolute, because a worker process may have another working directory
    path = Path(os.path.abspath(folder))
    if path not in _trusted_folders:
        _trusted_folders.append(path)
    # first, even if PYTHONPATH has it further back: else a module of the working directory would be imported
    if str(path) in sys.path:
        sys.path.remove(str(path))
    sys.path.insert(0, str(path))


def check_trusted(name: Any, *, within: str, key: str, source: Path | None = None) -> None:
    """Check, without importing anything, that a module or dotted name is trusted.

    ``within`` is the package of imsm that it may belong to, ``source`` the file that names it under ``key``.

    Raises:
        UserError: The name belongs neither to ``within`` nor to a trusted folder.
    """
    if not isinstance(name, str) or not _is_trusted(name, within):
        raise UserError(
            f"{_prefix(source, key, name)}: is neither part of {within} nor of a module in the folder given by "
            "--config-dir; if you trust it, give the folder that contains the module with --config-dir"
        )


def import_trusted_module(name: str, *, within: str, key: str, source: Path | None = None) -> ModuleType:
    """Import a module by its dotted name; see `check_trusted`.

    Raises:
        UserError: The module is not trusted, or cannot be imported.
    """
    check_trusted(name, within=within, key=key, source=source)
    return _import(name, prefix=_prefix(source, key, name))


def import_trusted(target: str, *, within: str, key: str, source: Path | None = None) -> Callable[..., Any]:
    """Import a function or class by its dotted name ``<module>.<name>``; see `check_trusted`.

    Raises:
        UserError: The module is not trusted, cannot be imported, or has no such function or class.
    """
    check_trusted(target, within=within, key=key, source=source)
    prefix = _prefix(source, key, target)
    module_name, _, name = target.rpartition(".")
    if not module_name:
        raise UserError(f"{prefix}: must be a dotted name, <module>.<name>")
    module = _import(module_name, prefix=prefix)
    found = getattr(module, name, None)
    if not callable(found):
        match = closest_match(name, vars(module))
        hint = did_you_mean(match and f"{module_name}.{match}")
        raise UserError(f"{prefix}: {module_name} has no function or class {name}{hint}")
    # A module of imsm also holds what it imports: functions that were not written for such arguments.
    defined_in = str(getattr(inspect.unwrap(found), "__module__", ""))
    if _belongs_to(module_name, within) and not _belongs_to(defined_in, within):
        raise UserError(f"{prefix}: {module_name} only imports it; give the module that defines it")
    return found


def _import(name: str, *, prefix: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise UserError(f"{prefix}: {error}; put a custom module into the folder given by --config-dir") from error


def _prefix(source: Path | None, key: str, name: Any) -> str:
    return f"{key}={name}" if source is None else f"{source}: {key}={name}"


def _is_trusted(name: str, within: str) -> bool:
    parts = name.split(".")
    # private names, __main__ among them, are not written to be named
    if any(not part.isidentifier() or part.startswith("_") for part in parts):
        return False
    if _belongs_to(name, within):
        return True
    # An imported module of that name, e.g. of the working directory, would be used instead of the folder's file.
    loaded = sys.modules.get(parts[0])
    return any(_has_module(folder, parts[0]) for folder in _trusted_folders) and (
        loaded is None or any(_is_below(loaded, folder) for folder in _trusted_folders)
    )


def _belongs_to(name: str, package: str) -> bool:
    return name == package or name.startswith(f"{package}.")


def _has_module(folder: Path, name: str) -> bool:
    # not a namespace package: a folder without __init__.py can be merged with another one of the same name
    return (folder / f"{name}.py").is_file() or (folder / name / "__init__.py").is_file()


def _is_below(module: ModuleType, folder: Path) -> bool:
    file = getattr(module, "__file__", None)
    return file is not None and Path(os.path.abspath(file)).is_relative_to(folder)
