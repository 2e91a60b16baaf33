"""Identify a backbone by everything that changes its answers, so that responses of another are never reused."""

from pathlib import Path

from transformers import AutoConfig

from imsm.models.backbones.loading import register_custom_models, resolve_path
from imsm.models.backbones.meta_model import build_meta_model, find_config
from imsm.utils.hashing import hash_file, hash_file_cached, hash_text

_WEIGHTS = ("*.safetensors", "*.bin", "*.gguf")
_SMALL = (
    *("config.json", "generation_config.json", "*.index.json", "chat_template*", "additional_chat_templates/*"),
    *("tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab*", "merges.txt", "*.model", "*.tiktoken"),
)
"""Configuration and tokenizer."""


def backbone_fingerprint(*, name_or_path: str, revision: str | None, local_resolver: str | None) -> str:
    """Return the SHA-256 of a local folder's weights, configuration and tokenizer, or the commit of a Hub repository.

    The hashes of weights are cached (`hash_file_cached`); small files are read each time.
    """
    folder = Path(resolve_path(name_or_path, local_resolver=local_resolver))
    if not folder.is_dir():
        register_custom_models()
        # transformers records the commit that the revision was resolved to; offline it is the cached one.
        config = AutoConfig.from_pretrained(name_or_path, revision=revision, trust_remote_code=False)
        return f"{name_or_path}@{getattr(config, '_commit_hash', None) or revision or 'main'}"
    hashes = {file: hash_file_cached(file) for file in _find(folder, _WEIGHTS)}
    hashes |= {file: hash_file(file) for file in _find(folder, _SMALL)}
    # File names but no folder: a copy of the same weights shares the cached responses.
    names = {file.relative_to(folder).as_posix(): sha256 for file, sha256 in hashes.items()}
    return hash_text("".join(f"{name}:{sha256}\n" for name, sha256 in sorted(names.items())))


def attention_implementation(
    *, name_or_path: str, revision: str | None, local_resolver: str | None, dtype: str, attn_implementation: str | None
) -> str:
    """Return the attention that transformers uses for a backbone, without loading its weights.

    Raises:
        UserError: its configuration does not describe a language model.
    """
    if attn_implementation is not None:
        return attn_implementation
    source = resolve_path(name_or_path, local_resolver=local_resolver)
    config, _ = find_config(path=source, revision=revision, architecture=None)
    return str(build_meta_model(config, dtype=dtype).config._attn_implementation)


def _find(folder: Path, patterns: tuple[str, ...]) -> list[Path]:
    return [file for pattern in patterns for file in folder.glob(pattern) if file.is_file()]
