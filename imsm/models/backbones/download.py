"""Having a backbone's files on this machine, without loading them: one form of the weights only."""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path
from typing import cast

from imsm.models.backbones.loading import load_error_message, resolve_path
from imsm.utils.errors import UserError

_SMALL = (".json", ".model", ".txt", ".jinja", ".tiktoken")
_FORMS = ("model.safetensors", "pytorch_model.bin")
"""The forms of weights in the order in which transformers looks for them; each may be in parts."""


def fetch_backbone(*, name_or_path: str, revision: str | None, local_resolver: str | None) -> Path:
    """The folder of a backbone's files; a hub's are downloaded unless they are here.

    Configuration, tokenizer, and one form of the weights: what a repository holds beside them
    (other formats, the original checkpoint, code) is left there.

    Args:
        name_or_path: see `resolve_path`.
        revision: of the hub id.
        local_resolver: see `resolve_path`.

    Raises:
        UserError: it cannot be had, or holds no weights that can be loaded.
    """
    source = resolve_path(name_or_path, local_resolver=local_resolver)
    if Path(source).is_dir():
        return Path(source)
    from huggingface_hub import HfApi, is_offline_mode, snapshot_download

    if is_offline_mode():
        if missing := missing_files(source, revision=revision):
            raise UserError(missing)
        return cast("Path", _cached(source, revision))
    try:
        commit = HfApi().model_info(source, revision=revision).sha
        names = HfApi().list_repo_files(source, revision=commit)
        wanted = [name for name in names if _is_small(name)]
        single, index = weight_files(names, source=source)
        folder = snapshot_download(source, revision=revision, allow_patterns=[*wanted, index])
        if index != single:
            parts = parts_of_index(Path(folder) / index)
            snapshot_download(source, revision=revision, allow_patterns=parts)
        return Path(folder)
    except UserError:
        raise
    except Exception as error:  # a dozen types, from the hub's client and from what carries it
        raise UserError(load_error_message(source, error)) from error


def weight_files(names: Collection[str], *, source: str) -> tuple[str, str]:
    """The form of the weights that is loaded, and the file to ask first: itself, or its index.

    Raises:
        UserError: there is none.
    """
    for form in _FORMS:
        for first in (form, f"{form}.index.json"):
            if first in names:
                return form, first
    raise UserError(
        f"backbone {source}: its repository holds none of {', '.join(_FORMS)}, in one piece or in "
        "parts; give a repository in the layout of transformers (backbone.name_or_path=...)"
    )


def parts_of_index(index: Path) -> list[str]:
    """The names of the files that an index of weights spreads them over."""
    return sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))


def missing_files(source: str, *, revision: str | None) -> str | None:
    """What of a hub's backbone is not in the hub's local cache, in one line; None: nothing.

    Only names are looked at; no network is used.
    """
    folder = _cached(source, revision)
    if folder is None:
        return _not_here(source, "it")
    names = {file.name for file in folder.iterdir()}
    try:
        single, first = weight_files(names, source=source)
    except UserError:
        return _not_here(source, "its weights")
    if first == single:
        return None
    missing = [name for name in parts_of_index(folder / first) if name not in names]
    return _not_here(source, f"{missing[0]} ({len(missing)} files)") if missing else None


def _cached(source: str, revision: str | None) -> Path | None:
    """The folder of a model's files in the hub's local cache, if its configuration is there."""
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(source, "config.json", revision=revision)
    return Path(found).parent if isinstance(found, str) else None


def _is_small(name: str) -> bool:
    """Whether a file is configuration or tokenizer; the weights' indexes are asked for apart."""
    if name.startswith("additional_chat_templates/"):
        return True
    return "/" not in name and name.endswith(_SMALL) and not name.endswith(".index.json")


def _not_here(source: str, what: str) -> str:
    return (
        f"backbone {source}: {what} is not in the hub's cache of this machine, and without a "
        "network it cannot be had; give the same command with mode=download where there is one"
    )
