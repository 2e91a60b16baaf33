"""`imsm cache list|clear`: the hidden-state caches and the own answers of adapters on this machine.

A hidden-state cache holds the original model's hidden states of training examples, for all epochs and runs. Own
answers are the training data of `imsm fit-gate --prompts`. Both are stored in the folder IMSM_CACHE.
"""

import argparse
import shutil
import time
from pathlib import Path

from imsm.utils.control_characters import escape_controls
from imsm.utils.errors import UserError
from imsm.utils.files import file_lock
from imsm.utils.formatting import format_bytes
from imsm.utils.paths import cache_folder, own_answers_folder


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command."""
    parser = argparse.ArgumentParser(
        prog="imsm cache",
        description="Hidden-state caches: the original model's hidden states of training examples. Own answers: those "
        "of an adapter to the prompts of `imsm fit-gate --prompts`, which the same command writes again.",
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

    paths = _cache_paths()
    table = Table(box=None, padding=(0, 2, 0, 0))
    for title in ("key", "model and data", "examples", "dtype", "pooling", "device", "written"):
        table.add_column(title, no_wrap=True)
    table.add_column("size", justify="right", no_wrap=True)
    for path in paths:
        cells = [path.name[:8], *(_cells(path) if path.is_dir() else _answer_cells(path)), format_bytes(_size(path))]
        table.add_row(*(Text(escape_controls(cell)) for cell in cells))
    console = Console()
    if paths:
        (console if console.is_terminal else Console(width=120)).print(table)
    print(f"{_count(paths)}, {format_bytes(sum(map(_size, paths)))} in {cache_folder()}")


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


def _answer_cells(path: Path) -> list[str]:
    """Return the number of an adapter's own answers, and their time."""
    label = "own answers of an adapter"
    try:
        with path.open("rb") as stream:
            count = sum(1 for _ in stream)
        written = time.strftime("%Y-%m-%d %H:%M", time.localtime(path.stat().st_mtime))
    except OSError:  # deleted by another process
        return [label, "", "", "", "", ""]
    return [label, f"{count:,}", "", "", "", written]


def _clear(keys: list[str]) -> None:
    paths = _cache_paths()
    for key in keys:
        if not any(path.name.startswith(key) for path in paths):
            raise UserError(f"KEY={key}: no cache in {cache_folder()} starts with it; see imsm cache list")
    chosen = [path for path in paths if not keys or path.name.startswith(tuple(keys))]
    # measured before the files are gone
    size = sum(map(_size, chosen))
    for path in chosen:
        try:
            if path.is_file():
                path.unlink()
                continue
            with file_lock(path):  # fails for a cache that a run is writing
                for part in _parts(path):
                    shutil.rmtree(part)
        except OSError as error:
            raise UserError(f"{path}: cannot be deleted ({error})") from error
    print(f"deleted {_count(chosen)}, {format_bytes(size)}")


def _cache_paths() -> list[Path]:
    """Return the folders of hidden states and the files of own answers."""
    from imsm.training.hidden_state_store import caches_dir

    folders = sorted(folder for folder in caches_dir().glob("*/") if _parts(folder))
    return [*folders, *sorted(own_answers_folder().glob("*.jsonl"))]


def _size(path: Path) -> int:
    from imsm.training.hidden_state_store import folder_size

    return folder_size(path) if path.is_dir() else path.stat().st_size


def _parts(folder: Path) -> list[Path]:
    """Return the folders of a cache: complete, corrupt, or incomplete ones."""
    return [path for path in folder.iterdir() if path.is_dir()]


def _count(paths: list[Path]) -> str:
    return "1 cache" if len(paths) == 1 else f"{len(paths)} caches"
