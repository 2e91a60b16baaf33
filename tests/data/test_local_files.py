"""Local JSON lines."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from imsm.data.local_files import ENDINGS, find_file, read_rows
from imsm.utils.errors import UserError

ROWS = [{"input": "Q: a\nA:", "output": "b"}, {"input": "Q: c\nA:", "output": ["d", "é"]}]


@pytest.mark.parametrize("ending", ENDINGS)
def test_lines_and_lists_are_read_with_and_without_compression(tmp_path: Path, ending: str) -> None:
    lines = "\n\n".join(json.dumps(row) for row in ROWS) + "\n"
    data = (lines if "jsonl" in ending else json.dumps(ROWS, indent=1)).encode()
    path = tmp_path / f"test{ending}"
    path.write_bytes(gzip.compress(data) if ending.endswith("gz") else data)
    assert find_file(tmp_path, role="test") == path
    assert read_rows(path) == ROWS


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("test.jsonl", json.dumps(ROWS[0]).encode() + b"\n{'input'\n", r"test\.jsonl, row 2: is not JSON"),
        ("test.json", b"[1,", r"test\.json: is not JSON"),
        ("test.jsonl", b'{"input": "\xff"}', r"test\.jsonl: cannot be read as UTF-8"),
        ("test.jsonl.gz", b"{}", r"test\.jsonl\.gz: cannot be read"),
    ],
)
def test_an_unreadable_file_is_a_user_error(tmp_path: Path, name: str, data: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(UserError, match=message):
        read_rows(tmp_path / name)


def test_a_missing_folder_or_file_and_several_files_are_user_errors(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"data\.local_dir=.*nowhere: "):
        find_file(tmp_path / "nowhere", role="test")
    (tmp_path / "train.jsonl").write_text("")
    with pytest.raises(UserError, match=r"no file for test, .*contains train\.jsonl"):
        find_file(tmp_path, role="test")
    (tmp_path / "train.jsonl.gz").write_text("")
    with pytest.raises(UserError, match=r"train\.jsonl and train\.jsonl\.gz; keep one"):
        find_file(tmp_path, role="train")
