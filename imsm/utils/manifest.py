"""`hashes.json`: the SHA-256 of a saved model's files, written last and compared at every load.

{"format": 1, "files": {"adapter/adapter_config.json": "41ab…", "config.json": "9f2c…"}, "sha256": "7d10…"}

`training.json` of a run holds the hash of `hashes.json` itself. Hashes are computed from the files each time,
never taken from a cache: a failing disk changes a file's content, but not its size and times.
"""

from collections.abc import Callable, Iterable
from pathlib import Path

from imsm.utils.errors import UserError
from imsm.utils.hashing import hash_file
from imsm.utils.json_files import read_hashed_json, write_hashed_json
from imsm.utils.run_dir import MODEL_HASH, RunDir, read_training

FILE = "hashes.json"
_FORMAT = 1


def write_manifest(folder: Path, names: Iterable[str] | None = None) -> str:
    """Write the hashes of the files ``names``, by default of all files below ``folder``.

    Returns:
        The hash of `hashes.json`.

    Raises:
        OSError: A file cannot be read or written.
    """
    files = {name: hash_file(folder / name) for name in sorted(_list_files(folder) if names is None else names)}
    write_hashed_json(folder / FILE, {"format": _FORMAT, "files": files})
    return hash_file(folder / FILE)


def verify_manifest(
    folder: Path, *, fix: str, may_add: Callable[[str], bool], sha256: str | None = None
) -> dict[str, str]:
    """Compare all files below ``folder`` with `hashes.json`; return the saved hashes by relative path.

    ``fix`` ends the error message. ``may_add`` returns whether a file that was not saved may exist. ``sha256`` is the
    hash of `hashes.json`, if it is known.

    Raises:
        UserError: A file is missing, changed, unreadable or was added, or `hashes.json` is missing or damaged.
    """
    files: dict[str, str] = read_hashed_json(folder / FILE, fix=fix, shape={"files": dict})["files"]
    if sha256 is not None and hash_file(folder / FILE) != sha256:
        raise UserError(f"{folder / FILE}: changed since training ended (its hash differs); {fix}")
    found = _list_files(folder)
    for name in found:
        if name not in files and not may_add(name):
            raise UserError(f"{folder / name}: is not one of the files that were saved; {fix}")
    for name, expected in files.items():
        path = folder / name
        # listed files only: a downloaded manifest can name any path
        if name not in found:
            raise UserError(f"{path}: is missing; {fix}")
        try:
            changed = hash_file(path) != expected
        except OSError as error:
            raise UserError(f"{path}: cannot be read ({error.strerror or error}); {fix}") from error
        if changed:
            raise UserError(f"{path}: changed since it was saved (its hash differs); {fix}")
    return files


def verify_run_model(run: RunDir) -> dict[str, str]:
    """Compare a run's trained model with the hashes of the end of its training; return them by relative path.

    Raises:
        UserError: A file of the model, or `training.json`, is missing, damaged, changed or was added.
    """
    fix = f"restore the file, or remove {run.path} and run its command again"
    sha256 = read_training(run)[MODEL_HASH]
    return verify_manifest(run.model, fix=fix, may_add=lambda _: False, sha256=sha256)


def _list_files(folder: Path) -> list[str]:
    # without temporary files, which a killed process leaves
    paths = (path for path in folder.rglob("*") if path.is_file() and path.suffix != ".tmp")
    return sorted(name for path in paths if (name := path.relative_to(folder).as_posix()) != FILE)
