"""`hashes.json`: the SHA-256 of every file of a folder, written last and compared at every load.

{"format": 1, "files": {"config.json": "9f2c…", "adapter/adapter_config.json": "41ab…"}}
"""

import json
from collections.abc import Iterable
from pathlib import Path

from imsm.utils.errors import UserError
from imsm.utils.files import write_atomic
from imsm.utils.hashing import hash_file
from imsm.utils.json_files import read_json

FILE = "hashes.json"
_FORMAT = 1


def write_manifest(folder: Path) -> dict[str, str]:
    """Hash all files below ``folder``, write `hashes.json` and return the hashes by relative path.

    Raises:
        OSError: A file cannot be read or written.
    """
    files = {name: hash_file(folder / name) for name in list_files(folder)}
    write_atomic(folder / FILE, json.dumps({"format": _FORMAT, "files": files}, indent=2) + "\n")
    return files


def list_files(folder: Path) -> list[str]:
    """Return the relative paths of all files below ``folder``, sorted, without `hashes.json`."""
    paths = (path for path in folder.rglob("*") if path.is_file())
    return sorted(name for path in paths if (name := path.relative_to(folder).as_posix()) != FILE)


def verify_manifest(folder: Path, *, fix: str, ignored: Iterable[str] = ()) -> dict[str, str]:
    """Hash all files below ``folder`` again, compare with `hashes.json`, and return the hashes by relative path.

    ``fix`` ends the error message. Names in ``ignored`` may be absent from the manifest.

    Raises:
        UserError: A file is missing, changed, unreadable or was added, or `hashes.json` is missing or damaged.
    """
    files = read_json(folder / FILE, fix=fix).get("files")
    if not isinstance(files, dict) or not all(isinstance(value, str) for value in files.values()):
        raise UserError(f"{folder / FILE}: is damaged (lacks files); {fix}")
    found = list_files(folder)
    for name in sorted({*files, *found}):
        path = folder / name
        if name not in files:
            if name in ignored or name.endswith(".tmp"):
                continue
            raise UserError(f"{path}: is not one of the files that were saved; {fix}")
        if name not in found:
            raise UserError(f"{path}: is missing; {fix}")
        try:
            changed = hash_file(path) != files[name]
        except OSError as error:
            raise UserError(f"{path}: cannot be read ({error.strerror or error}); {fix}") from error
        if changed:
            raise UserError(f"{path}: changed since it was saved (its hash differs); {fix}")
    return dict(files)
