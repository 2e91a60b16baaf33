"""What a run downloads, and what is available locally; the network is not accessed."""

import os
from pathlib import Path

from huggingface_hub import constants, try_to_load_from_cache

from imsm.data.task import HubDataset
from imsm.models.backbones.loading import MINIATURE
from imsm.pipeline.plan.types import DownloadItem

_WEIGHT_FILES = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin.index.json")


def needed_backbone(
    path: str, *, revision: str | None, local_source: str | None, parameters: int | None
) -> DownloadItem:
    """Return the download of a backbone's weights.

    ``path`` is a Hub id, local folder, or "imsm:miniature"; ``local_source`` describes a local replacement
    of the Hub's weights; ``parameters`` are assumed to take 2 bytes each on the Hub.
    """
    if path == MINIATURE:
        return DownloadItem(name="the miniature", location="included in imsm")
    if Path(path).is_dir():
        return DownloadItem(name=path, location="local folder")
    if local_source is not None:
        return DownloadItem(name=path, location=local_source)
    cached = (try_to_load_from_cache(path, name, revision=revision) for name in _WEIGHT_FILES)
    location = "Hub cache" if any(isinstance(each, str) for each in cached) else None
    return DownloadItem(name=f"model {path}", location=location, size=parameters and 2 * parameters)


def needed_dataset(hub: HubDataset, *, megabytes: int | None) -> DownloadItem:
    """Return the download of a Hub dataset; ``megabytes`` is the size of the files that are read."""
    folder = dataset_folder(hub.path, name=hub.name)
    location = None if folder is None else f"cache ({folder})"
    title = f"dataset {hub.path}" + (f" ({hub.name})" if hub.name else "")
    return DownloadItem(name=title, location=location, size=None if megabytes is None else 1e6 * megabytes)


def dataset_folder(path: str, *, name: str | None) -> Path | None:
    """Return the local folder of a Hub dataset, found by its name, or None."""
    # where the `datasets` library stores processed datasets; importing it takes seconds
    cache = Path(os.environ.get("HF_DATASETS_CACHE") or Path(constants.HF_HOME) / "datasets").expanduser()
    processed = cache / path.replace("/", "___")
    downloaded = Path(constants.HF_HUB_CACHE) / f"datasets--{path.replace('/', '--')}"
    folders = (processed / name if name is not None else processed, downloaded)
    return next((folder for folder in folders if folder.is_dir()), None)
