"""Mirrors: folders with datasets in the Hub's layout, `<mirror>/<owner>/<name>/...`.

This module does not import `datasets`, which takes seconds.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from imsm.data.local_files import ENDINGS, read_rows
from imsm.data.task import HubDataset
from imsm.utils.errors import UserError

_DATA_FILES = ("*.parquet", "*.jsonl", "*.json", "*.csv", "*.jsonl.gz", "*.json.gz", "*.arrow")


def check_mirror(mirror: Path, hub: HubDataset, *, splits: Sequence[str]) -> None:
    """Check that a mirror has the splits, without reading their rows.

    Configuration and splits are checked where the dataset card (README.md) lists the data files,
    as cards on the Hub do.

    Raises:
        UserError: The mirror, the dataset, its configuration or a split is missing.
    """
    if not mirror.is_dir():
        raise UserError(
            f"data.mirror_dir={mirror}: is not a directory; a mirror holds datasets under their Hub ids ({hub.path})"
        )
    folder = mirror / hub.path
    if not _any_file(folder, [f"**/{pattern}" for pattern in _DATA_FILES]):
        found = sorted(f"{path.parent.name}/{path.name}" for path in mirror.glob("*/*") if path.is_dir())
        raise UserError(f"data.mirror_dir={mirror}: has no {hub.path}; it has {', '.join(found) or 'no dataset'}")
    files = _files_by_split(folder, hub.name)
    if files is None:
        return
    available = sorted(split for split, patterns in files.items() if _any_file(folder, patterns))
    for split in splits:
        if split not in available:
            raise UserError(
                f"data.mirror_dir={mirror}: has no split {split} of {hub.path}; "
                f"its splits are {', '.join(available) or 'none'}"
            )


def read_mirror(mirror: Path, hub: HubDataset, *, split: str) -> list[Any]:
    """Return the rows of one split from JSON lines or parquet files.

    Raises:
        UserError: The split is missing, its card does not list its files, or they have another format.
    """
    check_mirror(mirror, hub, splits=[split])
    folder = mirror / hub.path
    patterns = (_files_by_split(folder, hub.name) or {}).get(split, [])
    paths = sorted({path for pattern in patterns for path in folder.glob(pattern)})
    if not paths:
        raise UserError(f"{folder}: the dataset card does not list the files of the split {split}")
    return [row for path in paths for row in _read_file(path)]


def _read_file(path: Path) -> list[Any]:
    if path.suffix == ".parquet":
        from pyarrow.parquet import read_table  # rarely needed, slow to import

        return list(read_table(path).to_pylist())
    if path.name.endswith(ENDINGS):
        return read_rows(path)
    raise UserError(f"{path}: is neither parquet nor JSON lines")


def _files_by_split(folder: Path, name: str | None) -> dict[str, list[str]] | None:
    """Return {split: file patterns} from the dataset card, or None if it does not list them."""
    configs = _card_values(folder / "README.md").get("configs")
    if not isinstance(configs, list) or not configs:
        return None
    by_name = {str(entry.get("config_name", "default")): entry for entry in configs}
    if name is not None and name not in by_name:
        raise UserError(f"{folder}: has no configuration {name!r}; it has {', '.join(sorted(by_name))}")
    # `datasets` decides which one is the default
    if name is None and len(by_name) > 1:
        return None
    entry = by_name[name] if name is not None else next(iter(by_name.values()))
    data_files = entry.get("data_files")
    if not isinstance(data_files, list) or not all(isinstance(item, dict) for item in data_files):
        return None
    return {
        str(item["split"]): [item["path"]] if isinstance(item["path"], str) else item["path"]
        for item in data_files
        if "split" in item and "path" in item
    }


def _any_file(folder: Path, patterns: Sequence[str]) -> bool:
    return any(True for pattern in patterns for _ in folder.glob(pattern))


def _card_values(readme: Path) -> dict[str, Any]:
    """Return the YAML values at the head of a dataset card."""
    if not readme.is_file():
        return {}
    parts = readme.read_text(encoding="utf-8").split("---\n", maxsplit=2)
    if len(parts) < 3 or parts[0].strip():
        return {}
    try:
        values = yaml.safe_load(parts[1])
    except yaml.YAMLError as error:
        raise UserError(f"{readme}: the head is not YAML ({error})") from error
    return values if isinstance(values, dict) else {}
