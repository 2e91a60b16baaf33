"""The synthetic datasets: real columns, sizes, balanced labels, disjoint training and test splits."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from scripts.miniature.build import FOLDER
from tests.scripts.miniature.shipped import TESTED, TRAINED, examples_of

CONFIGS = [
    ("nyu-mll/glue", "mrpc"),
    ("nyu-mll/glue", "cola"),
    ("openai/gsm8k", "main"),
    ("allenai/ropes", "plain_text"),
    ("stanfordnlp/web_questions", "default"),
    ("aps/super_glue", "multirc"),
    ("KelvinJiang/freebase_qa", "default"),
]


@pytest.mark.parametrize(("path", "config"), CONFIGS)
def test_columns_and_splits_equal_the_real_ones(path: str, config: str) -> None:
    if "IMSM_TEST_HUB" not in os.environ:
        pytest.skip("IMSM_TEST_HUB is not set")
    real = _load(Path(os.environ["IMSM_TEST_HUB"]) / path, config)
    ours = _load(FOLDER / "hub" / path, config)
    assert set(ours) == set(real)
    for split in real:
        assert ours[split].features == real[split].features


@pytest.mark.parametrize("task", TRAINED)
def test_sizes_and_disjoint_splits(task: str) -> None:
    train, test = examples_of(task, "train"), examples_of(task, "test")
    assert 1500 <= len(train) <= 3000
    assert 200 <= len(test) <= 400
    assert not {one.prompt for one in train} & {one.prompt for one in test}


@pytest.mark.parametrize("task", TESTED)
@pytest.mark.parametrize("prompts", ["paper", "corrected"])
def test_test_examples_are_unique_and_have_answers(task: str, prompts: str) -> None:
    test = examples_of(task, "test", prompts=prompts)
    assert 200 <= len(test) <= 400
    assert len({one.prompt for one in test}) == len(test)
    assert all(gold.strip() for one in test for gold in one.golds)


@pytest.mark.parametrize("task", ["mrpc", "cola", "multirc"])
def test_labels_are_balanced(task: str) -> None:
    shares = Counter(one.golds for one in examples_of(task, "test"))
    assert set(shares) == {("yes",), ("no",)}
    assert min(shares.values()) > 0.25 * sum(shares.values())


def test_answers_have_the_format_of_the_real_datasets() -> None:
    webq = [len(one.golds) for one in examples_of("webq", "test")]
    assert max(webq) > 1 and min(webq) == 1
    assert {len(one.golds) for one in examples_of("freebaseqa", "test")} == {1}
    assert all(one.golds[0].islower() for one in examples_of("freebaseqa", "test"))
    for one in examples_of("ropes", "test"):
        start, end = one.context or (0, 0)
        assert one.golds[0] in one.prompt[start:end]
    for one in examples_of("gsm8k", "train"):
        *steps, last = one.golds[0].split("\n")
        assert last.startswith("The answer is ") and last.endswith(".")
        assert steps and steps[-1].split(" = ")[1].split()[0] == last.split()[-1].rstrip(".")


def test_sums_are_correct() -> None:
    for one in examples_of("gsm8k", "train") + examples_of("gsm8k", "test"):
        for step in one.golds[0].split("\n")[:-1]:
            left, right = step.split(" = ")
            a, sign, b = left.split()[-3:]
            result = {"+": int(a) + int(b), "-": int(a) - int(b), "*": int(a) * int(b)}[sign]
            assert int(right.split()[0]) == result


def _load(folder: Path, config: str) -> Any:
    from datasets import load_dataset

    return load_dataset(str(folder), config)
