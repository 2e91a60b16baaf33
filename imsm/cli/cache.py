"""`imsm cache list|clear`: the hidden-state caches of this machine.

A cache holds the original model's hidden states of training examples, for all epochs and runs. It
is stored in the folder IMSM_CACHE.
"""

import argparse
import shutil
import time
from pathlib import Path

from imsm.utils.control_characters import escape_controls
from imsm.utils.errors import UserError
from imsm.utils.files import file_lock
from imsm.utils.formatting import format_bytes


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command."""
    parser = argparse.ArgumentParser(
        prog="imsm cache", description="Hidden-state caches: the original model's hidden states of training examples."
    )
    actions = parser.add_subparsers(dest="action", required=True)
    actions.add_parser("list", help="list the caches and their sizes")
    clear = actions.add_parser("clear", help="delete caches; a run that needs one computes it again")
    clear.add_argument("keys", nargs="*", metavar="KEY", help="start of a key, as `list` shows it; default: all")
    return parser


def main(arguments: list[str]) -> None:
    """List or delete the caches."""
    options = parser().parse_args(arguments)
    if options.action == "list":
        _list()
    else:
        _clear(options.keys)


def _list() -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from imsm.training.hidden_state_store import caches_dir, folder_size

    folders = _cache_folders()
    table = Table(box=None, padding=(0, 2, 0, 0))
    for title in ("key", "model and data", "examples", "dtype", "pooling", "device", "written"):
        table.add_column(title, no_wrap=True)
    table.add_column("size", justify="right", no_wrap=True)
    for folder in folders:
        cells = [folder.name[:8], *_cells(folder), format_bytes(folder_size(folder))]
        table.add_row(*(Text(escape_controls(cell)) for cell in cells))
    console = Console()
    if folders:
        (console if console.is_terminal else Console(width=120)).print(table)
    print(f"{_count(folders)}, {format_bytes(sum(map(folder_size, folders)))} in {caches_dir()}")


def _cells(folder: Path) -> list[str]:
    """Return a cache's label, examples, dtype, pooling, device and time."""
    from imsm.training.hidden_state_store import INDEX, read_index

    try:
        index = read_index(folder / "data")
        written = time.localtime((folder / "data" / INDEX).stat().st_mtime)
        numbers = [f"{index['examples']:,}", *(str(index[name]) for name in ("dtype", "pooling", "device"))]
        return [str(index["label"]), *numbers, time.strftime("%Y-%m-%d %H:%M", written)]
    except (OSError, KeyError) as error:
        return [f"incomplete ({error})", "", "", "", "", ""]


def _clear(keys: list[str]) -> None:
    from imsm.training.hidden_state_store import caches_dir, folder_size

    folders = _cache_folders()
    for key in keys:
        if not any(folder.name.startswith(key) for folder in folders):
            raise UserError(f"KEY={key}: no cache in {caches_dir()} starts with it; see imsm cache list")
    chosen = [folder for folder in folders if not keys or folder.name.startswith(tuple(keys))]
    # measured before the files are gone
    size = sum(map(folder_size, chosen))
    for folder in chosen:
        try:
            with file_lock(folder):  # fails for a cache that a run is writing
                for part in _parts(folder):
                    shutil.rmtree(part)
        except OSError as error:
            raise UserError(f"{folder}: cannot be deleted ({error})") from error
    print(f"deleted {_count(chosen)}, {format_bytes(size)}")


def _cache_folders() -> list[Path]:
    from imsm.training.hidden_state_store import caches_dir

    return sorted(folder for folder in caches_dir().glob("*/") if _parts(folder))


def _parts(folder: Path) -> list[Path]:
    """Return the folders of a cache: complete, corrupt, or incomplete ones."""
    return [path for path in folder.iterdir() if path.is_dir()]


def _count(folders: list[Path]) -> str:
    return "1 cache" if len(folders) == 1 else f"{len(folders)} caches"
