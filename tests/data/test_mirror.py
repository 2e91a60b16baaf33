"""Mirrors: what is missing is named, and rows are read without `datasets`."""

from __future__ import annotations

from pathlib import Path

import pytest

from imsm.data.mirror import check_mirror, read_mirror
from imsm.data.task import HubDataset
from imsm.utils.errors import UserError
from tests.data.mirrors import GLUE, PAIRS, write_lines, write_mirror

MRPC = HubDataset(path="nyu-mll/glue", name="mrpc", revision=None)


@pytest.fixture
def mirror(tmp_path: Path) -> Path:
    return write_mirror(tmp_path / "mirror")


def test_json_lines_are_read_by_the_patterns_of_the_card(mirror: Path) -> None:
    assert read_mirror(mirror, MRPC, split="train") == PAIRS
    assert read_mirror(mirror, MRPC, split="test") == PAIRS[:4]


def test_parquet_is_read(mirror: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow.parquet import write_table

    (mirror / GLUE / "mrpc" / "train.jsonl").unlink()
    write_table(pyarrow.Table.from_pylist(PAIRS), mirror / GLUE / "mrpc" / "train.parquet")
    assert read_mirror(mirror, MRPC, split="train") == PAIRS


@pytest.mark.parametrize(
    ("changes", "splits", "message"),
    [
        ({"path": "openai/gsm8k"}, ["test"], r"has no openai/gsm8k; it has nyu-mll/glue$"),
        ({"name": "cola"}, ["test"], r"no configuration 'cola'; it has mrpc$"),
        ({}, ["train", "dev"], r"no split dev of nyu-mll/glue; its splits are test, train$"),
    ],
)
def test_what_is_missing_is_named(mirror: Path, changes: dict, splits: list[str], message: str) -> None:
    hub = MRPC.model_copy(update=changes)
    with pytest.raises(UserError, match=message):
        check_mirror(mirror, hub, splits=splits)
    with pytest.raises(UserError, match=message):
        read_mirror(mirror, hub, split=splits[-1])


def test_a_missing_mirror_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"data\.mirror_dir=.*nowhere: is not a directory"):
        check_mirror(tmp_path / "nowhere", MRPC, splits=["test"])


def test_a_listed_file_that_is_missing_is_a_missing_split(mirror: Path) -> None:
    (mirror / GLUE / "mrpc" / "test.jsonl").unlink()
    with pytest.raises(UserError, match=r"no split test .* its splits are train$"):
        check_mirror(mirror, MRPC, splits=["test"])


def test_an_invalid_card_and_an_unlisted_split_are_user_errors(mirror: Path) -> None:
    (mirror / GLUE / "README.md").write_text("---\nconfigs: [\n---\n")
    with pytest.raises(UserError, match="is not YAML"):
        check_mirror(mirror, MRPC, splits=["test"])
    (mirror / GLUE / "README.md").unlink()
    check_mirror(mirror, MRPC, splits=["dev"])  # without a card any split may exist
    with pytest.raises(UserError, match="does not list the files of the split dev"):
        read_mirror(mirror, MRPC, split="dev")


def test_another_file_format_is_a_user_error(mirror: Path) -> None:
    write_lines(mirror / GLUE / "mrpc" / "train.csv", [])
    with pytest.raises(UserError, match=r"train\.csv: is neither parquet nor JSON lines"):
        read_mirror(mirror, MRPC, split="train")
