"""Prompts from a file of the user: lines, or rows with a field."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from imsm.data.prompts import read_prompts
from imsm.utils.errors import UserError

GIVEN = "rehearsal.prompts=FILE"


def test_lines_and_rows_give_the_same_distinct_prompts_in_order(tmp_path: Path) -> None:
    prompts = ["what is salt?", "  who sells pepper? ", "wo ist süß?"]
    lines, rows, array = (tmp_path / name for name in ("prompts.txt", "rows.jsonl", "rows.json"))
    lines.write_text("\n\n".join([*prompts, prompts[0], "   "]) + "\n", encoding="utf-8")
    found = [{"prompt": prompts[0]}, {"input": prompts[1], "output": "ann"}, {"input": prompts[2], "prompt": "no"}]
    found += [{"prompt": prompts[0]}, {"input": ""}, {"question": "no"}, {"input": 3, "prompt": prompts[1]}]
    rows.write_text("".join(json.dumps(row) + "\n" for row in found))
    array.write_text(json.dumps(found))
    for path in (lines, rows, array):
        assert read_prompts(path, given=GIVEN) == prompts


def test_a_line_is_a_prompt_even_if_it_looks_like_a_row(tmp_path: Path) -> None:
    path = tmp_path / "prompts.txt"
    path.write_text('{"prompt": "a"}\n')
    assert read_prompts(path, given=GIVEN) == ['{"prompt": "a"}']


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("missing.txt", None, "cannot be read as prompts"),
        ("binary.txt", b"\xff\xfe\x00", "cannot be read as prompts"),
        ("texts.jsonl", b'{"input": "a"}\n"a text"\n', r"^rehearsal\.prompts=FILE: line 2 must be an object"),
        ("damaged.jsonl", b'{"prompt": \n', "damaged.jsonl"),
        ("empty.txt", b"\n  \n", "contains no prompt"),
        ("other.jsonl", b'{"question": "a"}\n', "contains no prompt"),
    ],
)
def test_an_unusable_file_is_one_line(tmp_path: Path, name: str, content: bytes | None, problem: str) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=problem) as caught:
        read_prompts(tmp_path / name, given=GIVEN)
    assert "\n" not in str(caught.value)
