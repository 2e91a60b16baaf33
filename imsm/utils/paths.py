"""Folders on this machine: shipped yamls, caches and runs."""

import os
from pathlib import Path

from platformdirs import user_cache_path, user_data_path

from imsm.utils.errors import UserError

PACKAGE = Path(__file__).resolve().parents[1]


def cache_folder() -> Path:
    """Return IMSM_CACHE, or the platform's user cache folder."""
    return Path(os.environ.get("IMSM_CACHE") or user_cache_path("imsm")).expanduser()


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
    return root / "runs" if root is not None else user_data_path("imsm", appauthor=False) / "runs"


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
