"""Where things lie on this machine: the shipped yamls, and the root of all runs."""

from __future__ import annotations

import os
from pathlib import Path

from platformdirs import user_cache_path

from imsm.utils.errors import UserError


def cache_folder() -> Path:
    """IMSM_CACHE, or the user's cache folder of this platform."""
    return Path(os.environ.get("IMSM_CACHE") or user_cache_path("imsm")).expanduser()


PACKAGE = Path(__file__).resolve().parents[1]


def checkout() -> Path | None:
    """The checkout that the package lies in; None for an installed wheel."""
    project = PACKAGE.parent / "pyproject.toml"
    if project.is_file() and 'name = "imsm"' in project.read_text(encoding="utf-8"):
        return PACKAGE.parent
    return None


def conf_folder() -> Path:
    """The shipped `conf/`: inside the package in a wheel, beside it in a checkout."""
    inside = PACKAGE / "conf"
    return inside if inside.is_dir() else PACKAGE.parent / "conf"


def runs_root() -> Path:
    """The one folder under which every run lies, whatever the current folder.

    IMSM_RUNS if it is set, else `runs/` of the checkout, else the user's data folder.
    """
    chosen = os.environ.get("IMSM_RUNS")
    if chosen:
        return Path(chosen).expanduser().resolve()
    here = checkout()
    if here is not None:
        return here / "runs"
    from platformdirs import user_data_path

    return user_data_path("imsm", appauthor=False) / "runs"


def resolve_run_dir(named: str, *, option: str | None = None) -> Path:
    """The folder that ``named`` is, or is the name of under the root of all runs; absolute.

    ``option``: by which it was given, for the message.

    Raises:
        UserError: there is none.
    """
    given = Path(named).expanduser()
    folder = given if given.is_dir() else runs_root() / named
    if not folder.is_dir():
        given_by = named if option is None else f"{option} {named}"
        raise UserError(f"{given_by}: there is no such folder, nor a run of that name in {runs_root()}")
    return folder.absolute()
