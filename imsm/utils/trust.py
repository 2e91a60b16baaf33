"""Import modules that a file of a run or model folder names, only if they are trusted.

A downloaded folder is data: it may name modules of imsm and modules of the `--config-dir` that was given on this
command line, nothing else. Names on the command line and in yamls are imported by `imsm.utils.instantiate`.
"""

import importlib
import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from imsm.utils.errors import UserError

_trusted_folders: list[Path] = []


def trust_folder(folder: Path) -> None:
    """Trust the modules in a folder and make them importable; called for `--config-dir` only."""
    # absolute, because a worker process may have another working directory
    path = Path(os.path.abspath(folder))
    if path not in _trusted_folders:
        _trusted_folders.append(path)
    if str(path) not in sys.path:
        sys.path.insert(0, str(path))


def check_trusted(name: str, *, source: Path | str, key: str) -> None:
    """Check, without importing anything, that the module or dotted name ``name`` is trusted.

    ``source`` is the file that names it, under ``key``.

    Raises:
        UserError: The name is neither part of imsm nor of a trusted folder.
    """
    if not isinstance(name, str) or not _is_trusted(name):
        raise UserError(
            f"{source}: {key}={name}: is not part of imsm, and a file of a run or model folder may not name other "
            "code; if you trust it, give the folder that contains the module with --config-dir"
        )


def import_trusted_module(name: str, *, source: Path | str, key: str) -> ModuleType:
    """Import a module named by a file; see `check_trusted`.

    Raises:
        UserError: The module is not trusted, or cannot be imported.
    """
    check_trusted(name, source=source, key=key)
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise UserError(f"{source}: {key}={name}: {error}") from error


def import_trusted(target: str, *, source: Path | str, key: str) -> Callable[..., Any]:
    """Import a function or class named by a file as ``<module>.<name>``; see `check_trusted`.

    Raises:
        UserError: The module is not trusted, cannot be imported, or has no such function or class.
    """
    module_name, _, name = str(target).rpartition(".")
    module = import_trusted_module(module_name, source=source, key=key)
    found = getattr(module, name, None)
    if not callable(found):
        raise UserError(f"{source}: {key}={target}: {module_name} has no function or class {name}")
    return found


def _is_trusted(name: str) -> bool:
    parts = name.split(".")
    if not all(part.isidentifier() for part in parts):
        return False
    if parts[0] == "imsm":
        return True
    # An imported module with the same name, e.g. of the working directory, would be returned instead of the file.
    loaded = sys.modules.get(parts[0])
    return any(
        _has_module(folder, parts[0]) and (loaded is None or _is_below(loaded, folder)) for folder in _trusted_folders
    )


def _has_module(folder: Path, name: str) -> bool:
    # not a namespace package: a folder without __init__.py can be merged with another one of the same name
    return (folder / f"{name}.py").is_file() or (folder / name / "__init__.py").is_file()


def _is_below(module: ModuleType, folder: Path) -> bool:
    file = getattr(module, "__file__", None)
    return file is not None and Path(os.path.abspath(file)).is_relative_to(folder)
