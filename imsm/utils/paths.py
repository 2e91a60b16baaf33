"""Folders on this machine: shipped yamls, caches and runs."""

import os
import re
from pathlib import Path
from typing import Any

from imsm.utils.errors import UserError

PACKAGE = Path(__file__).resolve().parents[1]
_WANDB = "wandb"
PATH_NAME = "must consist of letters, digits and . _ -, begin with a letter or digit, and have at most 200 characters"
_PATH_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}")


def check_path_name(name: Any, *, key: str, source: Path) -> str:
    """Return ``name`` if it can be one part of a path, so that no file is read or written elsewhere.

    ``source`` is the file that contains it under ``key``.

    Raises:
        UserError: It is not a string, or does not have the form in `PATH_NAME`.
    """
    if not is_path_name(name):
        raise UserError(f"{source}: {key}={str(name)[:80]!r}: {PATH_NAME}")
    return str(name)


def is_path_name(name: Any) -> bool:
    """Return whether ``name`` can be one part of a path: no separator, no dot first, ASCII only."""
    return isinstance(name, str) and _PATH_NAME.fullmatch(name) is not None


def check_links(folder: Path) -> None:
    """Check that no symbolic link leads out of a run directory: writing through one would change files elsewhere.

    Raises:
        UserError: One does, or an entry is neither a file, a folder nor a link.
    """
    root = folder.resolve()
    for parent, folders, files in os.walk(folder):
        for name in (*folders, *files):
            path = Path(parent) / name
            # realpath, because resolve() raises for a link to itself
            if path.is_symlink() and not Path(os.path.realpath(path)).is_relative_to(root):
                raise UserError(
                    f"{path}: is a symbolic link that leads out of the run's folder, so that writing would change "
                    "files elsewhere; replace it by a copy (cp -rL copies a folder without links)"
                )
            if not (path.is_symlink() or path.is_file() or path.is_dir()):
                raise UserError(f"{path}: is neither a file nor a folder; remove it")
        if Path(parent) == folder and _WANDB in folders:
            folders.remove(_WANDB)  # its own links lead to its logs, and nothing else is written there


def cache_folder() -> Path:
    """Return IMSM_CACHE, or the platform's user cache folder."""
    given = os.environ.get("IMSM_CACHE")
    return Path(given).expanduser() if given else _user_folders().user_cache_path("imsm")


def own_answers_folder() -> Path:
    """Return the folder of the answers that adapters gave to prompts (`imsm.pipeline.own_answers`)."""
    return cache_folder() / "own_answers"


def checkout() -> Path | None:
    """Return the source checkout that contains the package, or None for an installed wheel."""
    project = PACKAGE.parent / "pyproject.toml"
    if project.is_file() and 'name = "imsm"' in project.read_text(encoding="utf-8"):
        return PACKAGE.parent
    return None


def conf_folder() -> Path:
    """Return the shipped `conf/`: inside the package in a wheel, next to it in a checkout."""
    inside = PACKAGE / "conf"
    return inside if inside.is_dir() else PACKAGE.parent / "conf"


def runs_root() -> Path:
    """Return the parent folder of all runs.

    IMSM_RUNS if set, else `runs/` of the checkout, else the user's data folder.
    """
    if os.environ.get("IMSM_RUNS"):
        return Path(os.environ["IMSM_RUNS"]).expanduser().resolve()
    root = checkout()
    return root / "runs" if root is not None else _user_folders().user_data_path("imsm", appauthor=False) / "runs"


def _user_folders() -> Any:
    """Return platformdirs; without it the benchmark still runs, which names its folders."""
    import platformdirs

    return platformdirs


def resolve_run_dir(name: str, *, option: str | None = None) -> Path:
    """Return the absolute path of a run, given as a folder or as a name under `runs_root`.

    ``option`` is the command-line option that it was given by, for the error message.

    Raises:
        UserError: The folder does not exist.
    """
    given = Path(name).expanduser()
    folder = given if given.is_dir() else runs_root() / name
    if not folder.is_dir():
        prefix = name if option is None else f"{option} {name}"
        raise UserError(f"{prefix}: no such folder, and no run of that name in {runs_root()}")
    # Not resolve(): a symbolic link keeps the name that the user gave.
    return folder.absolute()


def is_local_path(path: str) -> bool:
    """Return whether a backbone's path is a local folder rather than a Hub id."""
    # "owner/name" may be both; an existing folder wins, as in transformers.
    written = path.startswith(("/", "./", "../", "~")) or path in (".", "..")
    return written or path.count("/") > 1 or (not path.startswith("imsm:") and os.path.isdir(path))
