"""The memory banks of this machine: `imsm cache list|clear`.

Exit codes: 0 all went well, 2 the input was wrong.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import time
from pathlib import Path

from imsm.utils.errors import UserError
from imsm.utils.files import file_lock
from imsm.utils.formatting import format_bytes


def main(argv: list[str] | None = None) -> int:
    """List the banks, or remove them."""
    parser = argparse.ArgumentParser(
        prog="imsm cache",
        description="Memory banks: what the original model made of training examples, kept in the "
        "cache (IMSM_CACHE) for all epochs and runs.",
    )
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("list", help="what lies there")
    clear = commands.add_parser("clear", help="remove them; a run that needs one fills it again")
    clear.add_argument("keys", nargs="*", help="first digits of keys, as `list` shows; none: all")
    arguments = parser.parse_args(argv)
    try:
        if arguments.command == "list":
            _list()
        else:
            _clear(arguments.keys)
    except UserError as error:
        print(f"imsm: {error}", file=sys.stderr)
        return 2
    return 0


def _list() -> None:
    from rich.console import Console
    from rich.table import Table

    from imsm.training.hidden_state_store import banks_folder, size_of

    places = _places()
    total = sum(map(size_of, places))
    table = Table(box=None, padding=(0, 2, 0, 0))
    for title in ("key", "of", "examples", "dtype", "pooling", "device", "filled"):
        table.add_column(title, no_wrap=True)
    table.add_column("size", justify="right", no_wrap=True)
    for place in places:
        table.add_row(place.name[:8], *_described(place), format_bytes(size_of(place)))
    console = Console()
    if places:
        (console if console.is_terminal else Console(width=120)).print(table)
    many = "1 bank" if len(places) == 1 else f"{len(places)} banks"
    print(f"{many}, {format_bytes(total)} in {banks_folder()}")


def _described(place: Path) -> list[str]:
    """What a bank says of itself."""
    from imsm.training.hidden_state_store import INDEX, read_index

    bank = place / "bank"
    try:
        index = read_index(bank)
        filled = time.localtime((bank / INDEX).stat().st_mtime)
        names = ("dtype", "pooling", "device")
        told = [str(index["label"]), f"{index['examples']:,}", *(str(index[n]) for n in names)]
        return [*told, time.strftime("%Y-%m-%d %H:%M", filled)]
    except (OSError, KeyError) as error:
        return [f"no whole bank ({error})", "", "", "", "", ""]


def _clear(keys: list[str]) -> None:
    from imsm.training.hidden_state_store import banks_folder, size_of

    places = _places()
    for key in keys:
        if not any(place.name.startswith(key) for place in places):
            raise UserError(f"{key}: no bank in {banks_folder()} has a key that begins so")
    chosen = [each for each in places if not keys or each.name.startswith(tuple(keys))]
    freed = sum(map(size_of, chosen))
    for place in chosen:
        try:
            with file_lock(place):  # one that is being filled stays, and so does the lock
                for part in _parts(place):
                    shutil.rmtree(part)
        except OSError as error:
            raise UserError(f"{place}: could not be removed ({error})") from error
    many = "1 bank" if len(chosen) == 1 else f"{len(chosen)} banks"
    print(f"removed {many}, {format_bytes(freed)}")


def _places() -> list[Path]:
    from imsm.training.hidden_state_store import banks_folder

    folder = banks_folder()
    return sorted(each for each in folder.glob("*/") if _parts(each))


def _parts(place: Path) -> list[Path]:
    """A bank, and what was set aside or left of one."""
    return [each for each in place.iterdir() if each.is_dir()]


if __name__ == "__main__":
    sys.exit(main())
