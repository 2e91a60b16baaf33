"""Prompts from a mirror of the real data equal the paper's rows (needs their folders)."""

from __future__ import annotations

import functools
import gzip
import json
import os
from pathlib import Path
from typing import Any

import pytest

from imsm.data.example import Example
from imsm.data.sources import DataSource, load_examples
from imsm.data.task import Role
from tests.data.shipped import shipped_task

HUB = os.environ.get("IMSM_TEST_HUB")
REFERENCE = os.environ.get("IMSM_TEST_REFERENCE")
pytestmark = pytest.mark.skipif(not (HUB and REFERENCE), reason="IMSM_TEST_HUB and IMSM_TEST_REFERENCE are not set")
ROWS: list[tuple[str, Role, int]] = [
    ("mrpc", "train", 3668),
    ("mrpc", "test", 1725),
    ("cola", "train", 8551),
    ("cola", "test", 1043),
    ("gsm8k", "train", 7473),
    ("gsm8k", "test", 1319),
    ("ropes", "train", 10924),
    ("ropes", "test", 1688),
    ("webq", "test", 2032),
    ("freebaseqa", "test", 3996),
]


@functools.cache
def examples_of(name: str, role: Role, prompt_style: str = "paper") -> list[Example]:
    source = DataSource(kind="mirror", path=HUB)
    return load_examples(shipped_task(name), role, source=source, prompt_style=prompt_style, limit=None)


def reference_rows(name: str, role: Role) -> list[dict[str, Any]]:
    assert REFERENCE is not None
    with gzip.open(Path(REFERENCE) / name / f"{role}.jsonl.gz", "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


@pytest.mark.parametrize(("name", "role", "count"), ROWS)
def test_rows_are_byte_equal_and_in_order(name: str, role: Role, count: int) -> None:
    expected = reference_rows(name, role)
    assert len(expected) == count
    found = []
    for example, row in zip(examples_of(name, role), expected, strict=True):
        several = isinstance(row["output"], list)
        output = list(example.golds) if several else example.golds[0]
        found.append({"input": example.prompt, "output": output})
    wrong = [number for number, row in enumerate(expected) if found[number] != row]
    assert wrong == []


def test_multirc_rows_are_equal_up_to_order_and_spaces() -> None:
    expected = [(" ".join(r["input"].split()), r["output"]) for r in reference_rows("multirc", "test")]
    found = [(" ".join(e.prompt.split()), e.golds[0]) for e in examples_of("multirc", "test")]
    assert len(expected) == 312
    assert sorted(found) == sorted(expected)


def test_groups_are_the_passages_of_ropes_and_multirc() -> None:
    assert len({example.group for example in examples_of("ropes", "test")}) == 203
    assert len({example.group for example in examples_of("multirc", "test")}) == 168


def test_freebaseqa_accepts_the_answers_of_all_parses_in_lower_case() -> None:
    golds = [example.golds for example in examples_of("freebaseqa", "test")]
    assert sum(len(accepted) > 1 for accepted in golds) > 0
    assert all(gold == gold.lower() for accepted in golds for gold in accepted)


@pytest.mark.parametrize("name", ["mrpc", "cola", "gsm8k", "ropes", "webq", "freebaseqa", "multirc"])
def test_corrected_prompts_have_no_stray_spaces(name: str) -> None:
    paper, corrected = examples_of(name, "test"), examples_of(name, "test", "corrected")
    assert [e.id for e in corrected] == [e.id for e in paper]
    for example in corrected:
        assert "  " not in example.prompt
        assert " \n" not in example.prompt
        assert example.prompt == example.prompt.strip()
        assert "Ouput" not in example.prompt
    # only spaces, the typo and FreebaseQA's punctuation differ
    if name not in ("freebaseqa", "ropes"):
        for before, after in zip(paper, corrected, strict=True):
            fixed = before.prompt.replace("\nOuput:", "\nOutput:")
            assert "".join(fixed.split()) == "".join(after.prompt.split())
