"""Write a complete folder or none."""

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from imsm.utils.errors import UserError
from imsm.utils.files import fsync_tree
from imsm.utils.leftovers import remove_folders


@contextmanager
def new_folder(path: Path, *, option: str) -> Iterator[Path]:
    """Yield a temporary folder next to ``path``, and rename it to ``path`` if the block ends without an error.

    ``option`` is the command-line option that named the folder, for the error message. An existing folder is
    replaced only if it is empty.

    Raises:
        UserError: ``path`` exists and is not an empty folder, or cannot be written.
    """
    if os.path.lexists(path) and (path.is_symlink() or not path.is_dir() or any(path.iterdir())):
        raise UserError(f"{option} {path}: exists and is not an empty folder; name a new one")
    prefix = f".{path.name}.tmp-"
    temporary = path.with_name(f"{prefix}{os.getpid()}-{secrets.token_hex(4)}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        remove_folders(path.parent, prefix=prefix)
        temporary.mkdir()
    except OSError as error:
        raise UserError(f"{option} {path}: cannot be written ({error.strerror or error})") from error
    try:
        yield temporary
        fsync_tree(temporary)
        # fails if another process has written to the folder in the meantime
        temporary.rename(path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
