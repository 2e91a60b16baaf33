"""Number and lengths of examples: counted in local data, known from yamls for Hub data."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from imsm.data.sources import DataSource, load_examples
from imsm.models.backbones.loading import MINIATURE, load_tokenizer, resolve_path
from imsm.pipeline.plan.data import LengthStats, counted_lengths, known_lengths, limits_only, within_limits
from tests.data.shipped import shipped_task, task_facts

HUB = os.environ.get("IMSM_TEST_HUB")
FACTS = [
    (name, role)
    for name in ("gsm8k", "mrpc", "cola", "ropes", "webq", "freebaseqa", "multirc")
    for role in ("train", "test")
    if role in task_facts(name)
]


def test_miniature_data_is_counted_with_the_miniature_tokenizer() -> None:
    task, source = shipped_task("webq"), DataSource(kind="miniature")
    file = Path(resolve_path(MINIATURE)) / "tokenizer.json"
    found = counted_lengths(task, "train", source=source, prompts="paper", tokenizer=file)
    examples = load_examples(task, "train", source=source, prompt_style="paper", limit=None)
    tokenizer = load_tokenizer(name_or_path=MINIATURE)
    answers = [len(tokenizer(example.golds[0], add_special_tokens=False)["input_ids"]) + 1 for example in examples]
    assert found is not None and found.mean is not None
    assert found.examples == len(examples)
    assert found.mean[1] == pytest.approx(sum(answers) / len(answers))
    assert found.longest[1] == max(answers)


def test_a_local_folder_is_counted_unless_it_is_damaged(tmp_path: Path) -> None:
    rows = [{"input": "a" * 40, "output": "b" * 8}, {"input": "a" * 80, "output": "b" * 4}]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    task, source = shipped_task("jsonl"), DataSource(kind="local", path=str(tmp_path))
    found = counted_lengths(task, "train", source=source, prompts="paper", tokenizer=None)
    assert found is not None
    assert (found.examples, found.mean, found.longest) == (2, (15.0, 2.5), (20, 3))
    (tmp_path / "train.jsonl").write_text("{\n")
    found = counted_lengths(task, "train", source=source, prompts="paper", tokenizer=None)
    assert found is None


def test_more_examples_than_the_sample_are_counted_exactly_and_the_longest_is_found(tmp_path: Path) -> None:
    rows = [{"input": "a" * (40 + number % 7 * 4), "output": "b" * 4} for number in range(10_500)]
    rows[10_400], rows[200] = {"input": "a" * 4000, "output": "b"}, {"input": "a", "output": "b" * 400}
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    task, source = shipped_task("jsonl"), DataSource(kind="local", path=str(tmp_path))

    def found(limit: int | None = None) -> LengthStats:
        lengths = counted_lengths(task, "train", source=source, prompts="paper", tokenizer=None, limit=limit)
        assert lengths is not None and lengths.mean is not None
        return lengths

    every = found()
    assert (every.examples, every.longest) == (10_500, (1000, 101))
    assert every.mean == pytest.approx((13.1, 2.0), rel=0.02)
    assert "estimated from 10,000 examples" in every.source
    assert found() == every
    used = load_examples(task, "train", source=source, prompt_style="paper", limit=5)
    assert found(5).examples == 5
    assert found(5).mean == pytest.approx((sum(len(example.prompt) for example in used) / 20, 2.0))
    assert "estimated" not in found(5).source


def test_limits_apply_to_longer_examples() -> None:
    task = shipped_task("mrpc")
    lengths = LengthStats(examples=10, mean=(5.0, 2.0), longest=(9000, 3), source="counted")
    assert within_limits(lengths, task).longest == (task.max_prompt_tokens, 3)
    assert limits_only(task).longest == (task.max_prompt_tokens, task.max_new_tokens)
    assert lengths.limited(4).examples == 4
    assert lengths.limited(None).examples == 10
    assert limits_only(task).limited(4).examples is None


@pytest.mark.parametrize(("name", "role"), FACTS)
def test_the_statistics_in_the_yamls_are_correct(name: str, role: str) -> None:
    """Counts are exact; lengths differ with the vocabulary (needs a folder with the real data)."""
    if HUB is None:
        pytest.skip("IMSM_TEST_HUB is not set")
    known = known_lengths(task_facts(name), role)
    source = DataSource(kind="mirror", path=HUB)
    found = counted_lengths(shipped_task(name), role, source=source, prompts="paper", tokenizer=None)
    assert known is not None and found is not None
    assert known.mean is not None and found.mean is not None
    assert known.examples == found.examples
    assert known.mean[0] == pytest.approx(found.mean[0], rel=0.3)
    assert known.longest[0] == pytest.approx(found.longest[0], rel=0.4)
