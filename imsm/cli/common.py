"""Arguments and checks that several commands share."""

import gc
import os
import sys
from argparse import ArgumentParser
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from imsm.utils.errors import UserError
from imsm.utils.files import write_atomic
from imsm.utils.json_files import format_json
from imsm.utils.paths import runs_root
from imsm.utils.run_dir import RunDir
from imsm.utils.trust import trust_folder


@contextmanager
def fast_imports() -> Iterator[None]:
    """Import libraries in this context without garbage collection, and exclude their objects from later ones.

    Imports allocate many objects and free few: collecting them takes 1 to 2 s of every process.
    """
    enabled = gc.isenabled()
    gc.collect()  # otherwise the garbage of an earlier run in this process would be excluded too, and stay in memory
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if enabled:
            gc.enable()


def add_config_dir(parser: ArgumentParser) -> None:
    """Add the option `--config-dir`."""
    parser.add_argument("--config-dir", "-cd", type=Path, metavar="FOLDER", help="folder of custom yamls and modules")


def import_from_config_dir(folder: Path | None) -> Path | None:
    """Trust the modules next to the user's yamls, make them importable, and return the absolute folder.

    Raises:
        UserError: the folder does not exist.
    """
    if folder is None:
        return None
    if not folder.is_dir():
        raise UserError(f"--config-dir {folder}: no such directory")
    trust_folder(folder)
    # absolute, because a worker process may have another working directory
    return Path(os.path.abspath(folder))


def find_run(name: str) -> Path:
    """Return the folder of a finished run, given its path or its name.

    Raises:
        UserError: no such run; the message lists the finished ones.
    """
    root = runs_root()
    for folder in (Path(name).expanduser(), root / name):
        # a finished run whose model is damaged is found: loading it names the file
        if RunDir(folder).is_trained or (folder / "model" / "config.json").is_file():
            return folder
    finished = sorted(path.parent.parent.name for path in root.glob("*/model/config.json"))
    raise UserError(f"run={name}: no finished run, here or in {root}; finished: {', '.join(finished) or 'none'}")


def print_without_effect(overrides: Sequence[str]) -> None:
    """Print a line that names overrides which the run does not use, if there are any."""
    if overrides:
        print(f"imsm: {', '.join(overrides)}: no effect in this run; omit it", file=sys.stderr)


def print_json(value: Any, *, indent: int | None = 2) -> None:
    """Print a value as JSON; see `format_json`."""
    print(format_json(value, indent=indent))


def write_output(path: Path, text: str, *, option: str = "--output") -> None:
    """Write the file that an option names, with its folder.

    Raises:
        UserError: the file cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, text)
    except OSError as error:
        raise UserError(f"{option} {path}: cannot be written ({error.strerror or error})") from error
