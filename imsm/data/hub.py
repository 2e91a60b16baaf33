"""Load splits with the `datasets` library: from the Hub, or from a mirror."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import datasets
from datasets import Dataset
from datasets.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

from imsm.data.mirror import check_mirror
from imsm.data.task import HubDataset
from imsm.utils.errors import UserError


def load_from_hub(hub: HubDataset, *, split: str) -> Dataset:
    """Download one split, or take it from the cache of `datasets`.

    Raises:
        UserError: The split is not available; names the download and the offline alternatives.
    """
    try:
        with _no_cache_warnings():
            return datasets.load_dataset(hub.path, hub.name, split=split, revision=hub.revision)
    # a dozen types from three libraries
    except Exception as error:
        raise UserError(_download_error(hub, split, error)) from error


def load_mirror(mirror: Path, hub: HubDataset, *, split: str) -> Dataset:
    """Load one split of `<mirror>/<path>` without network access.

    Raises:
        UserError: The mirror, the dataset, its configuration or its split is missing or unreadable.
    """
    check_mirror(mirror, hub, splits=[split])
    try:
        # The cache of `datasets` (5.2.0) confuses two folders with the same layout, and a changed file
        # with the old one: the miniature's MRPC would be taken for the real one.
        with TemporaryDirectory(prefix="imsm-mirror-") as cache, _no_progress_bars():
            folder = str(mirror / hub.path)
            # in memory, because the cache is deleted on return
            return datasets.load_dataset(folder, hub.name, split=split, cache_dir=cache, keep_in_memory=True)
    except Exception as error:  # a dozen types from three libraries
        problem = f"{_title(hub, split)} cannot be read ({_reason(error)})"
        raise UserError(f"data.mirror_dir={mirror}: {problem}; replace its files in the mirror") from error


def _title(hub: HubDataset, split: str) -> str:
    details = [hub.name, f"split {split}", hub.revision and f"revision {hub.revision}"]
    return f"{hub.path} ({', '.join(part for part in details if part)})"


def _download_error(hub: HubDataset, split: str, error: Exception) -> str:
    revision = f" --revision {hub.revision}" if hub.revision else ""
    fetch = f"hf download {hub.path}{revision} --repo-type dataset --local-dir MIRROR/{hub.path}"
    title = f"Hub dataset {_title(hub, split)}"
    if datasets.config.HF_HUB_OFFLINE:
        return (
            f"{title}: is not in this machine's cache, and HF_HUB_OFFLINE is set; run the same command with "
            f"mode=download on a machine with network access (or `{fetch}` there, and set "
            "data.mirror_dir=MIRROR here)"
        )
    return (
        f"{title}: not available ({_reason(error)}); without network access, run the same command with "
        f"mode=download on a machine that has it, or run there\n  {fetch}\n"
        "and set data.mirror_dir=MIRROR; or set data.local_dir= to a folder with train.jsonl and test.jsonl; "
        "or use the miniature, which needs no download: backbone=mini"
    )


def _reason(error: BaseException) -> str:
    # `datasets` wraps the useful message in a general one
    cause = error.__cause__
    suffix = f" [{type(cause).__name__}: {cause}]" if cause is not None else ""
    return f"{type(error).__name__}: {error}{suffix}"


@contextmanager
def _no_cache_warnings() -> Iterator[None]:
    """Silence the warning per split that offline mode uses the cache."""
    verbosity = datasets.logging.get_verbosity()
    if datasets.config.HF_HUB_OFFLINE:
        datasets.logging.set_verbosity_error()
    try:
        yield
    finally:
        datasets.logging.set_verbosity(verbosity)


@contextmanager
def _no_progress_bars() -> Iterator[None]:
    """Hide the progress bar per split; local files are read in a moment."""
    were_disabled = are_progress_bars_disabled()
    disable_progress_bars()
    try:
        yield
    finally:
        if not were_disabled:
            enable_progress_bars()
