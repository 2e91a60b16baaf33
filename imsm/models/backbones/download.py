"""Download the files of a backbone without loading it, with one format of the weights only."""

from collections.abc import Collection
from pathlib import Path
from typing import cast

from huggingface_hub import HfApi, is_offline_mode, snapshot_download, try_to_load_from_cache

from imsm.models.backbones.loading import load_error_message, resolve_path
from imsm.utils.errors import UserError
from imsm.utils.json_files import read_json

_SMALL = (".json", ".model", ".txt", ".jinja", ".tiktoken")
_FORMATS = ("model.safetensors", "pytorch_model.bin")
"""Weight formats in the order in which transformers looks for them; each may be sharded."""


def fetch_backbone(*, name_or_path: str, revision: str | None, local_resolver: str | None) -> Path:
    """Return the folder of a backbone, downloading its missing files from the Hub; see `resolve_path`.

    Downloads the configuration, the tokenizer and one format of the weights. Other formats, the
    original checkpoint and code are skipped.

    Raises:
        UserError: the repository cannot be downloaded, or contains no loadable weights.
    """
    source = resolve_path(name_or_path, local_resolver=local_resolver)
    if Path(source).is_dir():
        return Path(source)
    if is_offline_mode():
        if missing := missing_files(source, revision=revision):
            raise UserError(missing)
        return cast(Path, cached_folder(source, revision))
    try:
        # Files are listed at one commit, because a branch may move between two requests.
        commit = HfApi().model_info(source, revision=revision).sha
        names = HfApi().list_repo_files(source, revision=commit)
        wanted = [name for name in names if _is_small(name)]
        single, index = weight_files(names, source=source)
        # Downloaded by the requested name, not the commit: the Hub cache records branches only this way.
        folder = Path(snapshot_download(source, revision=revision, allow_patterns=[*wanted, index]))
        if index != single:
            snapshot_download(source, revision=revision, allow_patterns=parts_of_index(folder / index))
        return folder
    except UserError:
        raise
    # The Hub client and its transport raise a dozen types without a common base class.
    except Exception as error:
        raise UserError(load_error_message(source, error)) from error


def weight_files(names: Collection[str], *, source: str) -> tuple[str, str]:
    """Return the format of the weights to load, and its file or the index of its shards.

    Raises:
        UserError: ``names`` contains no known format.
    """
    for single in _FORMATS:
        for first in (single, f"{single}.index.json"):
            if first in names:
                return single, first
    raise UserError(
        f"backbone {source}: its repository contains none of {', '.join(_FORMATS)}, in one file or sharded; set "
        "backbone.name_or_path to a repository in the transformers layout"
    )


def parts_of_index(index: Path) -> list[str]:
    """Return the names of the shards that an index of weights lists."""
    weights = read_json(index, fix="download it again", shape={"weight_map": dict})["weight_map"]
    return sorted(set(map(str, weights.values())))


def missing_files(source: str, *, revision: str | None) -> str | None:
    """Return an error line if files of a Hub backbone are not in the local cache, else None.

    Checks names only, without network access.
    """
    folder = cached_folder(source, revision)
    if folder is None:
        return _not_cached(source, "it")
    # The snapshot folder of an interrupted download exists but lacks files.
    names = {file.name for file in folder.iterdir()}
    try:
        single, first = weight_files(names, source=source)
    except UserError:
        return _not_cached(source, "its weights")
    if first == single:
        return None
    missing = [name for name in parts_of_index(folder / first) if name not in names]
    return _not_cached(source, f"{missing[0]} ({len(missing)} files)") if missing else None


def cached_folder(source: str, revision: str | None) -> Path | None:
    """Return the folder of a model in the local Hub cache, if its configuration is cached."""
    config = try_to_load_from_cache(source, "config.json", revision=revision)
    return Path(config).parent if isinstance(config, str) else None


def _is_small(name: str) -> bool:
    """Whether a file is configuration or tokenizer; an index of weights is downloaded separately."""
    if name.startswith("additional_chat_templates/"):
        return True
    return "/" not in name and name.endswith(_SMALL) and not name.endswith(".index.json")


def _not_cached(source: str, what: str) -> str:
    return (
        f"backbone {source}: {what} is not in the local Hub cache and cannot be downloaded without network access; "
        "run the same command with mode=download on a machine with network access"
    )
