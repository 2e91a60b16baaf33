"""Local JSON lines."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from imsm.data.local_files import ENDINGS, count_rows, find_file, iter_rows, read_rows
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
    assert count_rows(path) == 2
    assert [(row.position, row.value) for row in iter_rows(path, chosen={1})] == [(1, ROWS[1])]


def test_a_byte_order_mark_and_unusual_line_separators_are_accepted(tmp_path: Path) -> None:
    row = {"input": "a\u2028b", "output": "c\x85"}
    text = "\ufeff\r\n \n" + json.dumps(row, ensure_ascii=False) + "\r\n"
    (tmp_path / "train.jsonl").write_bytes(text.encode())
    assert [(each.location, each.value) for each in iter_rows(tmp_path / "train.jsonl")] == [("line 3", row)]


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("test.jsonl", json.dumps(ROWS[0]).encode() + b"\n{'input'\n", r"test\.jsonl, line 2: is not JSON"),
        ("test.json", b"[1,", r"test\.json: is not JSON"),
        ("test.jsonl", b'{"input": "\xff"}', r"test\.jsonl, line 1: is not JSON"),
        ("test.jsonl", b'{"input": "a", "input": "b"}', "the key 'input' occurs twice"),
        ("test.jsonl", b"[" * 100_000 + b"\n", r"test\.jsonl: is not JSON"),
        ("test.jsonl", b'{"a": ' * 100_000 + b"\n", r"test\.jsonl, line 1: is not JSON"),
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
