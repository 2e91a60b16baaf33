"""What identifies a backbone's weights: answers of other weights must never be reused."""

from __future__ import annotations

import contextlib
import hashlib
import json
from pathlib import Path

from imsm.models.backbones.loading import register_custom_models, resolve_path
from imsm.utils.files import write_atomic
from imsm.utils.paths import cache_folder

_WEIGHTS = ("*.safetensors", "*.bin", "*.gguf", "config.json")


def backbone_fingerprint(*, name_or_path: str, revision: str | None, local_resolver: str | None) -> str:
    """SHA-256 over a local folder's weights and configuration; the commit of a hub's repository.

    Args:
        name_or_path: see `resolve_path`.
        revision: the hub's branch, tag or commit that was asked for.
        local_resolver: see `resolve_path`.
    """
    folder = Path(resolve_path(name_or_path, local_resolver=local_resolver))
    if not folder.is_dir():
        return f"{name_or_path}@{_commit(name_or_path, revision)}"
    digest = hashlib.sha256()
    for file in sorted({file for pattern in _WEIGHTS for file in folder.glob(pattern)}):
        digest.update(f"{file.name}:{file_digest(file)}\n".encode())
    return digest.hexdigest()


def _commit(path: str, revision: str | None) -> str:
    """The commit of a hub's repository that lies in the local hub cache."""
    from transformers import AutoConfig

    register_custom_models()
    commit = getattr(AutoConfig.from_pretrained(path, revision=revision), "_commit_hash", None)
    return commit or revision or "main"


def file_digest(file: Path) -> str:
    """SHA-256 of a file, remembered by its place, size and time: weights can be many gigabytes."""
    notes = cache_folder() / "fingerprints.json"
    status = file.stat()
    key = f"{file.resolve()}:{status.st_size}:{status.st_mtime_ns}"
    try:
        known = json.loads(notes.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        known = {}
    if key not in known:
        with file.open("rb") as stream:
            known[key] = hashlib.file_digest(stream, "sha256").hexdigest()
        with contextlib.suppress(OSError):  # a cache that cannot be written only costs time
            notes.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(notes, json.dumps(known))
    return known[key]
