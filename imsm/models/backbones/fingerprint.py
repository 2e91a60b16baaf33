"""Identify the weights of a backbone, so that cached responses of other weights are never reused."""

from __future__ import annotations

from pathlib import Path

from transformers import AutoConfig

from imsm.models.backbones.loading import register_custom_models, resolve_path
from imsm.utils.hashing import hash_file_cached, hash_text

_WEIGHTS = ("*.safetensors", "*.bin", "*.gguf", "config.json")


def backbone_fingerprint(*, name_or_path: str, revision: str | None, local_resolver: str | None) -> str:
    """Return the SHA-256 of a local folder's weights and configuration, or the commit of a Hub repository.

    Args:
        name_or_path: see `resolve_path`.
        revision: requested branch, tag or commit on the Hub.
        local_resolver: see `resolve_path`.
    """
    folder = Path(resolve_path(name_or_path, local_resolver=local_resolver))
    if not folder.is_dir():
        return f"{name_or_path}@{_commit(name_or_path, revision)}"
    files = sorted({file for pattern in _WEIGHTS for file in folder.glob(pattern)})
    return hash_text("".join(f"{file.name}:{hash_file_cached(file)}\n" for file in files))


def _commit(path: str, revision: str | None) -> str:
    """Return the commit of a repository in the local Hub cache."""
    register_custom_models()
    commit = getattr(AutoConfig.from_pretrained(path, revision=revision), "_commit_hash", None)
    return commit or revision or "main"
