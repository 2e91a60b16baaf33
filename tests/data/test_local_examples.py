"""Examples of local files: drawn from a stream, split by hash, or read by a custom module."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from imsm.data import local_examples
from imsm.data.example import Example
from imsm.data.local_examples import chosen_indices, iter_local, load_local
from imsm.data.sources import DataSource, check_source, iter_examples, load_examples
from imsm.data.task import Role, Task
from imsm.utils import trust
from imsm.utils.errors import UserError
from tests.data.mirrors import write_lines
from tests.data.shipped import shipped_task

ROWS = [{"prompt": f"Which town is number {n}?", "completion": f"town {n}", "id": n} for n in range(500)]


def load(
    path: Path, role: Role = "train", *, limit: int | None = None, share: float | None = None, task: str = "jsonl"
):
    return load_local(shipped_task(task), role, path=path, test_share=share, prompt_style="paper", limit=limit)


@pytest.fixture(autouse=True)
def _announce_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local_examples, "_announced", set())


def test_a_limit_draws_the_examples_of_a_permutation_of_all_rows(tmp_path: Path) -> None:
    write_lines(tmp_path / "train.jsonl", ROWS)
    order = list(range(len(ROWS)))
    random.Random("imsm.limit").shuffle(order)
    assert [example.id for example in load(tmp_path, limit=16)] == [f"jsonl/train/{n}" for n in sorted(order[:16])]
    every = load(tmp_path)
    assert load(tmp_path, limit=len(ROWS)) == load(tmp_path, limit=10_000) == every
    assert set(chosen_indices(500, 8)) < set(chosen_indices(500, 16))


def test_only_drawn_rows_are_parsed(tmp_path: Path) -> None:
    write_lines(tmp_path / "train.jsonl", ROWS)
    expected = load(tmp_path, limit=16)
    drawn = {int(example.id.rpartition("/")[2]) for example in expected}
    lines = [json.dumps(row) if number in drawn else "{damaged" for number, row in enumerate(ROWS)]
    (tmp_path / "train.jsonl").write_text("\n".join(lines))
    assert load(tmp_path, limit=16) == expected
    first = next(number for number in range(len(ROWS)) if number not in drawn)
    with pytest.raises(UserError, match=rf"train\.jsonl, line {first + 1}: is not JSON"):
        load(tmp_path)


def test_rows_unused_keys_and_errors_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_lines(tmp_path / "train.jsonl", ROWS)
    load(tmp_path, limit=16)
    load(tmp_path)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith("train.jsonl: 16 of 500 rows with prompt and completion (unused keys: id)")
    write_lines(
        tmp_path / "train.jsonl", [{"instruction": "a", "input": "", "output": "b"}, {"input": "", "output": "b"}]
    )
    with pytest.raises(UserError, match=r"train\.jsonl, line 2: has input and output, but the rows before it"):
        load(tmp_path)
    (tmp_path / "train.jsonl").write_text('\n{"input": "a", "output": "b"}\n\n{"input": " ", "output": "b"}\n')
    with pytest.raises(UserError, match=r"line 4: input: must be a non-blank string"):
        load(tmp_path)


@pytest.mark.parametrize("shuffled", [False, True])
def test_a_share_of_the_rows_is_the_test_set_in_any_order(tmp_path: Path, shuffled: bool) -> None:
    variants = [{**row, "prompt": row["prompt"].upper().replace("?", " ?")} for row in ROWS]  # type: ignore[attr-defined]
    rows = [*ROWS, *variants]
    write_lines(tmp_path / "a" / "train.jsonl", rows)
    expected = {example.prompt for example in load(tmp_path / "a", "test", share=0.2)}
    random.Random(0).shuffle(rows if shuffled else [])
    write_lines(tmp_path / "rows.jsonl", rows)
    train, test = (load(tmp_path / "rows.jsonl", role, share=0.2) for role in ("train", "test"))
    assert {example.prompt for example in test} == expected
    assert len(train) + len(test) == len(rows)
    assert 0.1 < len(test) / len(rows) < 0.3
    # equal questions are on the same side
    assert not {example.prompt.upper().replace(" ?", "?") for example in train} & {
        example.prompt.upper().replace(" ?", "?") for example in test
    }
    limited = load(tmp_path / "rows.jsonl", "test", share=0.2, limit=10)
    assert len(limited) == 10
    assert [example for example in test if example in limited] == limited


def test_the_share_is_refused_next_to_a_test_file_and_needed_for_one_file(tmp_path: Path) -> None:
    write_lines(tmp_path / "train.jsonl", ROWS[:3])
    with pytest.raises(UserError, match=r"set data\.test_share"):
        load(tmp_path / "train.jsonl", "test")
    with pytest.raises(UserError, match=r"selects no test example"):
        load(tmp_path, "test", share=1e-9)
    write_lines(tmp_path / "test.jsonl", ROWS[:3])
    with pytest.raises(UserError, match=r"data\.test_share=0\.1: .*test\.jsonl"):
        check_source(shipped_task("jsonl"), source=DataSource(kind="local", path=str(tmp_path), test_share=0.1))
    assert load(tmp_path / "train.jsonl") == load(tmp_path)


@pytest.fixture
def capitals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Task:
    """A task whose module, in a trusted folder, yields no example of some rows."""
    monkeypatch.setattr(trust, "_trusted_folders", [])
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "local_capitals.py").write_text(
        "from imsm.data.example import Example\n"
        "def examples(rows, *, split, prompt_style):\n"
        "    for number, row in enumerate(rows):\n"
        "        if row['capital']:\n"
        "            prompt = f\"country: {row['country']}\\ncapital:\"\n"
        "            yield Example(id=f'capitals/{split}/{number}', prompt=prompt, golds=(row['capital'],))\n"
        "def extract(response):\n    return response\n"
    )
    trust.trust_folder(tmp_path)
    return shipped_task("jsonl").model_copy(update={"name": "capitals", "module": "local_capitals"})


def test_a_custom_module_reads_its_own_rows(tmp_path: Path, capitals: Task) -> None:
    rows = [{"country": f"c{n}", "capital": f"d{n}" if n % 3 else "", "input": "x", "output": "y"} for n in range(30)]
    write_lines(tmp_path / "data" / "train.jsonl", rows)
    source = DataSource(kind="local", path=str(tmp_path / "data"))

    def found(limit: int | None) -> list[Example]:
        return load_examples(capitals, "train", source=source, prompt_style="paper", limit=limit)

    every = found(None)
    assert [example.golds for example in every] == [(row["capital"],) for row in rows if row["capital"]]
    assert every[0].prompt == "country: c1\ncapital:"
    assert found(5) == [every[index] for index in sorted(chosen_indices(20, 5))]
    assert list(iter_examples(capitals, "train", source=source, prompt_style="paper")) == every
    write_lines(tmp_path / "data" / "train.jsonl", [*rows[:3], {"country": "x"}])
    with pytest.raises(UserError, match=r"train\.jsonl, line 4: is not a record of this dataset .*capital"):
        found(None)


def test_a_shipped_dataset_reads_complete_prompts_or_its_own_records(tmp_path: Path) -> None:
    write_lines(tmp_path / "train.jsonl", [{"question": "1+1?", "answer": "It is 2.\n#### 2"}])
    (example,) = load(tmp_path, task="gsm8k")
    assert example.golds == ("It is 2.\nThe answer is 2.",)
    assert example.prompt.endswith("\n1+1?") and example.prompt != "1+1?"
    (example,) = load(tmp_path, task="jsonl")
    assert example.prompt == "1+1?"
    write_lines(tmp_path / "train.jsonl", [{"prompt": "1+1?", "completion": "2"}])
    assert [example.prompt for example in load(tmp_path, task="gsm8k")] == ["1+1?"]


def test_examples_are_streamed(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_text(json.dumps(ROWS[0]) + "\n{damaged\n")
    examples = iter_local(
        shipped_task("jsonl"), "train", file=tmp_path / "train.jsonl", test_share=None, prompt_style="paper"
    )
    assert next(examples).id == "jsonl/train/0"
    with pytest.raises(UserError, match="line 2"):
        next(examples)
