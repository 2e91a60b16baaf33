"""Rows of a test that were learned: counted and named."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from imsm.data.example import Example
from imsm.evaluation.leaks import leaks
from imsm.stages.data import learned_examples
from tests.composed import config


def example(name: str, prompt: str) -> Example:
    return Example(id=name, prompt=prompt, golds=("yes",))


def test_equal_prompts_are_found_whatever_their_case_and_blanks() -> None:
    learned = [example("a", "Is it  red?\nOutput:"), example("b", "Is it blue?")]
    test = [example("1", "is it red? output:"), example("2", "Is it green?"), example("3", "x")]
    assert leaks(test, learned) == {"count": 1, "ids": ["1"]}
    assert leaks(test, []) == {"count": 0, "ids": []}


def test_no_more_than_twenty_are_named() -> None:
    rows = [example(str(number), f"question {number}") for number in range(30)]
    found = leaks(rows, rows)
    assert found["count"] == 30 and len(found["ids"]) == 20


@pytest.mark.skipif("IMSM_TEST_HUB" not in os.environ, reason="needs the datasets' mirror")
def test_colas_test_holds_sixteen_rows_of_its_training_split() -> None:
    from imsm.data.sources import Source, load_examples
    from imsm.data.task import Task

    mirror = Path(os.environ["IMSM_TEST_HUB"])
    chosen = config("backbone=llama3", "data=cola", f"data.mirror={mirror}")
    test = load_examples(
        Task(**chosen.data.task_arguments()),
        "test",
        source=Source(kind="mirror", path=str(mirror)),
        prompts="verbatim",
        limit=None,
    )
    found = leaks(test, learned_examples(chosen))
    assert found["count"] == 16 and len(found["ids"]) == 16
