"""Datasets in the hub's layout: from the hub itself, or from a mirror folder."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from imsm.data.local_files import read_rows
from imsm.data.task import HubDataset
from imsm.utils.errors import UserError

if TYPE_CHECKING:
    from datasets import Dataset

DATA_FILES = ("*.parquet", "*.jsonl", "*.json", "*.csv", "*.jsonl.gz", "*.json.gz", "*.arrow")


def load_from_hub(hub: HubDataset, *, split: str) -> Dataset:
    """Downloads one split (or takes it from the library's cache).

    Raises:
        UserError: it cannot be had, with what would have been downloaded and the way round.
    """
    import datasets

    path, revision = hub.path, hub.revision
    try:
        with _quiet():
            return datasets.load_dataset(path, hub.name, split=split, revision=revision)
    except Exception as error:  # a dozen types, from three libraries
        raise UserError(_download_error(hub, split, error)) from error


def load_mirror(mirror: Path, hub: HubDataset, *, split: str) -> Dataset:
    """Reads one split of `<mirror>/<path>`; no network is used.

    Raises:
        UserError: the mirror, the dataset, its configuration or its split is not there.
    """
    check_mirror(mirror, hub, splits=[split])
    import datasets

    try:
        # The library's cache takes two folders of one layout for the same data, and changed files
        # for unchanged ones (seen in 5.2.0): the miniature's MRPC would be the real one's.
        with TemporaryDirectory(prefix="imsm-mirror-") as cache, _no_progress_bars():
            return datasets.load_dataset(
                str(mirror / hub.path), hub.name, split=split, cache_dir=cache, keep_in_memory=True
            )
    except Exception as error:  # a dozen types, from three libraries
        raise UserError(f"{_title(hub, split)} in the mirror {mirror} cannot be read: {_reason(error)}") from error


def read_mirror_fast(mirror: Path, hub: HubDataset, *, split: str) -> list[Any]:
    """The rows of one split of `<mirror>/<path>`, read from JSON lines or parquet as they are.

    Without the `datasets` library, whose import takes seconds: for who only looks (`mode=plan`).

    Raises:
        UserError: the split is not there, its files are not listed, or of another format.
    """
    check_mirror(mirror, hub, splits=[split])
    folder = mirror / hub.path
    patterns = (_files_by_split(folder, hub.name) or {}).get(split, [])
    paths = sorted({path for pattern in patterns for path in folder.glob(pattern)})
    if not paths:
        raise UserError(f"{folder}: its card does not list the files of the split {split}.")
    return [row for path in paths for row in _rows(path)]


def _rows(path: Path) -> list[Any]:
    if path.suffix == ".parquet":
        from pyarrow.parquet import read_table

        return list(read_table(path).to_pylist())
    if path.name.endswith((".jsonl", ".json", ".jsonl.gz", ".json.gz")):
        return read_rows(path)
    raise UserError(f"{path}: is neither parquet nor JSON lines.")


def check_mirror(mirror: Path, hub: HubDataset, *, splits: Sequence[str]) -> None:
    """Looks whether the mirror holds the splits, without reading them.

    Where the dataset's card (README.md) lists its files, as the hub's do, configuration and splits
    are checked as well.

    Raises:
        UserError: the mirror, the dataset, its configuration or a split is not there.
    """
    if not mirror.is_dir():
        raise UserError(
            f"The mirror {mirror} is no folder. A mirror holds datasets under their hub ids, e.g. {hub.path}."
        )
    folder = mirror / hub.path
    if not _any_file(folder, [f"**/{pattern}" for pattern in DATA_FILES]):
        held = sorted(f"{path.parent.name}/{path.name}" for path in mirror.glob("*/*") if path.is_dir())
        raise UserError(f"The mirror {mirror} lacks {hub.path}. It holds {', '.join(held) or 'nothing'}.")
    files = _files_by_split(folder, hub.name)
    if files is None:
        return
    held = sorted(split for split, patterns in files.items() if _any_file(folder, patterns))
    for split in splits:
        if split not in held:
            raise UserError(
                f"The mirror {mirror} lacks the split {split} of {hub.path}. "
                f"Its splits: {', '.join(held) or 'none'}."
            )


def _files_by_split(folder: Path, name: str | None) -> dict[str, list[str]] | None:
    """{split: file patterns} as the card lists them; None where it does not."""
    configs = _card(folder / "README.md").get("configs")
    if not isinstance(configs, list) or not configs:
        return None
    by_name = {str(entry.get("config_name", "default")): entry for entry in configs}
    if name is not None and name not in by_name:
        raise UserError(f"{folder} has no configuration {name!r}. It has {', '.join(sorted(by_name))}.")
    if name is None and len(by_name) > 1:
        return None  # which one is the default is the library's business
    entry = by_name[name] if name is not None else next(iter(by_name.values()))
    listed = entry.get("data_files")
    if not isinstance(listed, list) or not all(isinstance(item, dict) for item in listed):
        return None
    return {
        str(item["split"]): [item["path"]] if isinstance(item["path"], str) else item["path"]
        for item in listed
        if "split" in item and "path" in item
    }


def _any_file(folder: Path, patterns: Sequence[str]) -> bool:
    return any(True for pattern in patterns for _ in folder.glob(pattern))


def _card(readme: Path) -> dict[str, Any]:
    """The values at the head of a dataset card."""
    import yaml

    if not readme.is_file():
        return {}
    parts = readme.read_text(encoding="utf-8").split("---\n", maxsplit=2)
    if len(parts) < 3 or parts[0].strip():
        return {}
    try:
        values = yaml.safe_load(parts[1])
    except yaml.YAMLError as error:
        raise UserError(f"The head of {readme} is not YAML ({error}).") from error
    return values if isinstance(values, dict) else {}


def _title(hub: HubDataset, split: str) -> str:
    details = [hub.name, f"split {split}", hub.revision and f"revision {hub.revision}"]
    return f"{hub.path} ({', '.join(part for part in details if part)})"


def _download_error(hub: HubDataset, split: str, error: Exception) -> str:
    """What would have been downloaded, and the way round."""
    import datasets

    at = f" --revision {hub.revision}" if hub.revision else ""
    fetch = f"hf download {hub.path}{at} --repo-type dataset --local-dir MIRROR/{hub.path}"
    what = f"The hub's dataset {_title(hub, split)}"
    if datasets.config.HF_HUB_OFFLINE:
        return (
            f"{what} is not in the cache of this machine, and HF_HUB_OFFLINE is set: give the same "
            f"command with mode=download where there is a network (or `{fetch}` there, and "
            "data.mirror_dir=MIRROR here)"
        )
    return (
        f"{what} could not be had: {_reason(error)}\n"
        "Without a network, give the same command with mode=download where there is one; or fetch "
        f"it there\n  {fetch}\n"
        "and give data.mirror_dir=MIRROR; or give rows of your own with data.local_dir=; or take the "
        "miniature, which needs neither: backbone=mini."
    )


def _reason(error: BaseException) -> str:
    cause = error.__cause__
    inner = f" [{type(cause).__name__}: {cause}]" if cause is not None else ""
    return f"{type(error).__name__}: {error}{inner}"


@contextmanager
def _quiet() -> Iterator[None]:
    """Without a network the library would say at each split that it takes what is cached."""
    import datasets

    before = datasets.logging.get_verbosity()
    if datasets.config.HF_HUB_OFFLINE:
        datasets.logging.set_verbosity_error()
    try:
        yield
    finally:
        datasets.logging.set_verbosity(before)


@contextmanager
def _no_progress_bars() -> Iterator[None]:
    """Reading a local file takes a moment; the library would draw a bar for each split."""
    from datasets.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    were_disabled = are_progress_bars_disabled()
    disable_progress_bars()
    try:
        yield
    finally:
        if not were_disabled:
            enable_progress_bars()
