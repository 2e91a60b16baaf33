"""Identify the weights of a backbone, so that cached responses of other weights are never reused."""

from pathlib import Path

from transformers import AutoConfig

from imsm.models.backbones.loading import register_custom_models, resolve_path
from imsm.utils.hashing import hash_file_cached, hash_text

_WEIGHTS = ("*.safetensors", "*.bin", "*.gguf", "config.json")


def backbone_fingerprint(*, name_or_path: str, revision: str | None, local_resolver: str | None) -> str:
    """Return the SHA-256 of a local folder's weights and configuration, or the commit of a Hub repository."""
    folder = Path(resolve_path(name_or_path, local_resolver=local_resolver))
    if not folder.is_dir():
        register_custom_models()
        # transformers records the commit that the revision was resolved to; offline it is the cached one.
        config = AutoConfig.from_pretrained(name_or_path, revision=revision)
        return f"{name_or_path}@{getattr(config, '_commit_hash', None) or revision or 'main'}"
    # File names but no folder: a copy of the same weights shares the cached responses.
    files = sorted({file for pattern in _WEIGHTS for file in folder.glob(pattern)})
    return hash_text("".join(f"{file.name}:{hash_file_cached(file)}\n" for file in files))
