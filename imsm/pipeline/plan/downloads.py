"""What a run must fetch before it can begin, and what is here already; nothing is asked for."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import constants, try_to_load_from_cache

from imsm.data.task import HubDataset
from imsm.models.backbones.loading import MINIATURE

_WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin.index.json")


@dataclass(frozen=True, kw_only=True)
class DownloadItem:
    """One thing that a run needs from elsewhere.

    Attributes:
        what: its name, with where it comes from.
        here: where it is already; None: it must be fetched.
        gigabytes: about so much; None: not known.
    """

    what: str
    here: str | None
    gigabytes: float | None


def needed_backbone(path: str, *, revision: str | None, stand_in: str | None, weights: int | None) -> DownloadItem:
    """The backbone's weights.

    Args:
        path: a hub id, a local folder, or "imsm:miniature".
        revision: of the hub id.
        stand_in: where a local stand-in of the hub's weights comes from, or None.
        weights: how many there are; the hub keeps most models in 16 bits.
    """
    if path == MINIATURE:
        return DownloadItem(what="the miniature", here="ships with imsm", gigabytes=None)
    if Path(path).is_dir():
        return DownloadItem(what=path, here="a local folder", gigabytes=None)
    if stand_in is not None:
        return DownloadItem(what=path, here=stand_in, gigabytes=None)
    found = (try_to_load_from_cache(path, name, revision=revision) for name in _WEIGHTS)
    here = "in the hub's cache" if any(isinstance(each, str) for each in found) else None
    size = None if weights is None else 2 * weights / 1e9
    return DownloadItem(what=f"model {path}", here=here, gigabytes=size)


def needed_dataset(hub: HubDataset, *, megabytes: int | None) -> DownloadItem:
    """A dataset on the hub.

    Args:
        hub: its path, name (configuration) and revision.
        megabytes: of the files that are read; None: not known.
    """
    path, name = hub.path, hub.name
    folder = dataset_folder(path, name=name)
    here = None if folder is None else f"in the cache ({folder})"
    size = None if megabytes is None else megabytes / 1e3
    what = f"dataset {path}" + (f" ({name})" if name else "")
    return DownloadItem(what=what, here=here, gigabytes=size)


def dataset_folder(path: str, *, name: str | None) -> Path | None:
    """Where a dataset of the hub lies on this machine, by its names alone; None: nowhere."""
    made = _datasets_cache() / path.replace("/", "___")
    fetched = Path(constants.HF_HUB_CACHE) / f"datasets--{path.replace('/', '--')}"
    folders = (made / name if name is not None else made, fetched)
    return next((folder for folder in folders if folder.is_dir()), None)


def _datasets_cache() -> Path:
    """Where the `datasets` library keeps what it made of downloads (its own rule, unimported)."""
    home = Path(os.environ.get("HF_DATASETS_CACHE") or Path(constants.HF_HOME) / "datasets")
    return home.expanduser()
