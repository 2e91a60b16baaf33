"""Hub, mirror, miniature and folder: the same examples, and one clear message for what is amiss."""

from __future__ import annotations

import gzip
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from imsm.data import sources
from imsm.data.example import Example
from imsm.data.sources import DataSource, check_source, load_examples
from imsm.data.task import Role, Task
from imsm.utils.errors import UserError
from tests.data.shipped import shipped_task, task_values

PAIRS = [{"sentence1": f"Boat {n} sank .", "sentence2": f"Boat {n} went down .", "label": n % 2} for n in range(30)]
CARD = """---
configs:
- config_name: mrpc
  data_files:
  - split: train
    path: mrpc/train*
  - split: test
    path: [mrpc/test.jsonl]
---
"""


def write_lines(path: Path, rows: list[Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


@pytest.fixture
def mirror(tmp_path: Path) -> Path:
    glue = tmp_path / "mirror" / "nyu-mll" / "glue"
    write_lines(glue / "mrpc" / "train.jsonl", PAIRS)
    write_lines(glue / "mrpc" / "test.jsonl", PAIRS[:4])
    (glue / "README.md").write_text(CARD)
    return tmp_path / "mirror"


def load(task: Task, source: DataSource, role: Role = "test", limit: int | None = None) -> list[Example]:
    return load_examples(task, role, source=source, prompts="paper", limit=limit)


def at(mirror: Path) -> DataSource:
    return DataSource(kind="mirror", path=str(mirror))


def test_mirror_with_a_card(mirror: Path) -> None:
    task = shipped_task("mrpc")
    check_source(task, source=at(mirror))
    examples = load(task, at(mirror), "train")
    assert [example.id for example in examples] == [f"mrpc/train/{n}" for n in range(30)]
    assert examples[7].prompt.endswith("\nSentence2: Boat 7 went down .\nOuput:")


def test_mirror_without_a_card(tmp_path: Path) -> None:
    rows = [{"question": "what towns?", "answers": ["Lowmere"]}]
    write_lines(tmp_path / "stanfordnlp" / "web_questions" / "test.jsonl", rows)
    assert load(shipped_task("webq"), at(tmp_path))[0].golds == ("Lowmere",)


def test_a_mirror_is_not_taken_for_another_or_for_its_past(mirror: Path, tmp_path: Path) -> None:
    task = shipped_task("mrpc")
    twin = tmp_path / "twin"
    shutil.copytree(mirror, twin)
    file = Path("nyu-mll") / "glue" / "mrpc" / "test.jsonl"
    write_lines(twin / file, [{"sentence1": "A .", "sentence2": "B .", "label": 0}])
    assert len(load(task, at(mirror))) == 4
    assert len(load(task, at(twin))) == 1
    write_lines(mirror / file, PAIRS[:9])
    assert len(load(task, at(mirror))) == 9


def test_miniature_is_read_as_a_mirror(mirror: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "MINIATURE", mirror)
    assert load(shipped_task("mrpc"), DataSource(kind="miniature")) == load(shipped_task("mrpc"), at(mirror))


def test_a_limit_keeps_order_and_nests(mirror: Path) -> None:
    task = shipped_task("mrpc")
    ids = [e.id for e in load(task, at(mirror), "train")]
    ten = [e.id for e in load(task, at(mirror), "train", limit=10)]
    five = [e.id for e in load(task, at(mirror), "train", limit=5)]
    assert len(ten) == 10
    assert ten == [name for name in ids if name in ten] != ids[:10]
    assert five == [name for name in ten if name in five]
    assert ten == [e.id for e in load(task, at(mirror), "train", limit=10)]
    assert load(task, at(mirror), "train", limit=99) == load(task, at(mirror), "train")
    with pytest.raises(UserError, match="limit of 0"):
        load(task, at(mirror), limit=0)


def test_mirror_that_lacks_something_is_refused_by_check_and_load(mirror: Path, tmp_path: Path) -> None:
    mrpc, cola = shipped_task("mrpc"), shipped_task("cola")
    dev = Task(**{**task_values("mrpc"), "splits": {"train": ["train"], "test": ["dev"]}})
    cases = [
        (mrpc, tmp_path / "nowhere", r"nowhere is no folder"),
        (shipped_task("gsm8k"), mirror, r"lacks openai/gsm8k\. It holds nyu-mll/glue\."),
        (cola, mirror, r"no configuration 'cola'\. It has mrpc\."),
        (dev, mirror, r"lacks the split dev of nyu-mll/glue\. Its splits: test, train\."),
    ]
    for task, folder, told in cases:
        with pytest.raises(UserError, match=told):
            check_source(task, source=at(folder))
        with pytest.raises(UserError, match=told):
            load(task, at(folder))
    check_source(dev, source=at(mirror), roles=["train"])


def test_a_listed_file_that_is_not_there(mirror: Path) -> None:
    (mirror / "nyu-mll" / "glue" / "mrpc" / "test.jsonl").unlink()
    with pytest.raises(UserError, match=r"lacks the split test .* Its splits: train"):
        check_source(shipped_task("mrpc"), source=at(mirror))


def test_a_split_without_examples(tmp_path: Path) -> None:
    index = {"paragraph": 0, "question": 0, "answer": 0}
    row = {"paragraph": "A.", "question": "B?", "answer": "C", "label": 1, "idx": index}
    for split in ("train", "validation"):
        write_lines(tmp_path / "aps" / "super_glue" / "multirc" / f"{split}.jsonl", [row])
    hub = {"path": "aps/super_glue", "name": None, "revision": None}
    with pytest.raises(UserError, match="is empty"):
        load(Task(**{**task_values("multirc"), "hub": hub}), at(tmp_path))


def test_rows_of_another_dataset_are_told_with_their_place(mirror: Path) -> None:
    rows = [PAIRS[0], {**PAIRS[1], "label": -1}]
    write_lines(mirror / "nyu-mll" / "glue" / "mrpc" / "test.jsonl", rows)
    with pytest.raises(UserError, match=r"nyu-mll/glue, test, row 2: label -1"):
        load(shipped_task("mrpc"), at(mirror))
    for split in ("train", "test"):
        write_lines(mirror / "nyu-mll" / "glue" / "mrpc" / f"{split}.jsonl", [{"text": "a"}])
    with pytest.raises(UserError, match=r"row 1: sentence1 is missing"):
        load(shipped_task("mrpc"), at(mirror), "train")


def test_a_forgetting_test_cannot_be_trained_on(mirror: Path) -> None:
    with pytest.raises(UserError, match="freebaseqa has no train split"):
        load(shipped_task("freebaseqa"), at(mirror), "train")


def test_no_hub_id_without_a_folder(mirror: Path) -> None:
    for source in (DataSource(kind="hub"), at(mirror), DataSource(kind="miniature")):
        with pytest.raises(UserError, match=r"jsonl is not on the hub: give data\.folder="):
            check_source(shipped_task("jsonl"), source=source)


def test_unknown_choices() -> None:
    with pytest.raises(UserError, match=r"data\.source='hup' is unknown"):
        DataSource(kind="hup")
    with pytest.raises(UserError, match=r"give data\.mirror="):
        DataSource(kind="mirror")
    with pytest.raises(UserError, match=r"data\.prompts='exact' is unknown"):
        load_examples(shipped_task("mrpc"), "test", source=DataSource(kind="miniature"), prompts="exact", limit=None)


OWN = [{"input": "Q: a\nA:", "output": "b"}, {"input": "Q: c\nA:", "output": ["d", "é"]}]


@pytest.mark.parametrize("file", ["test.jsonl", "test.jsonl.gz", "test.json", "test.json.gz"])
@pytest.mark.parametrize("name", ["jsonl", "gsm8k"])
def test_folder(tmp_path: Path, file: str, name: str) -> None:
    lines = "\n\n".join(json.dumps(row) for row in OWN) + "\n"
    data = (json.dumps(OWN, indent=1) if "jsonl" not in file else lines).encode()
    (tmp_path / file).write_bytes(gzip.compress(data) if file.endswith("gz") else data)
    source = DataSource(kind="local", path=str(tmp_path))
    check_source(shipped_task(name), source=source, roles=["test"])
    examples = load(shipped_task(name), source)
    assert [e.prompt for e in examples] == ["Q: a\nA:", "Q: c\nA:"]
    assert [e.golds for e in examples] == [("b",), ("d", "é")]


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ({"input": "a", "output": 5}, r"must be a text or a list of texts, not 5 \(int\)"),
        ({"input": "a", "output": []}, "not an empty list"),
        ({"input": "a", "output": None}, r"not None \(NoneType\)"),
        ({"input": "a", "output": {"x": "b"}}, r"\(dict\)"),
        ({"input": "a", "output": ["b", 7]}, r"output holds 7 \(int\)"),
        ({"input": "a", "output": " "}, r"output holds ' ' \(str\)"),
        ({"input": 3, "output": "b"}, r"input must be a text, not 3 \(int\)"),
        ({"input": "a"}, "output missing"),
        ({"prompt": "a"}, "input and output missing"),
        (["a", "b"], "input and output missing"),
    ],
)
def test_folder_row_of_a_wrong_kind(tmp_path: Path, row: Any, told: str) -> None:
    write_lines(tmp_path / "test.jsonl", [OWN[0], row])
    with pytest.raises(UserError, match=rf"test\.jsonl, row 2: .*{told}"):
        load(shipped_task("jsonl"), DataSource(kind="local", path=str(tmp_path)))


def test_folder_that_lacks_something(tmp_path: Path) -> None:
    task, source = shipped_task("jsonl"), DataSource(kind="local", path=str(tmp_path))
    with pytest.raises(UserError, match="nowhere is no folder"):
        load(task, DataSource(kind="local", path=str(tmp_path / "nowhere")))
    write_lines(tmp_path / "train.jsonl", OWN)
    with pytest.raises(UserError, match=r"lacks a file for test, .* It holds train\.jsonl"):
        check_source(task, source=source)
    write_lines(tmp_path / "test.jsonl", [])
    with pytest.raises(UserError, match=r"test\.jsonl is empty"):
        load(task, source)
    (tmp_path / "test.jsonl").write_text(json.dumps(OWN[0]) + "\n{'input'\n")
    with pytest.raises(UserError, match=r"test\.jsonl, row 2 is not JSON"):
        load(task, source)
    (tmp_path / "test.jsonl").write_bytes(b'{"input": "\xff"}')
    with pytest.raises(UserError, match=r"test\.jsonl cannot be read as UTF-8"):
        load(task, source)
    (tmp_path / "test.jsonl").rename(tmp_path / "test.jsonl.gz")
    with pytest.raises(UserError, match=r"test\.jsonl\.gz cannot be read"):
        load(task, source)
    write_lines(tmp_path / "test.jsonl", OWN)
    with pytest.raises(UserError, match=r"test\.jsonl and test\.jsonl\.gz: keep one"):
        load(task, source)


def test_no_network_says_what_would_be_downloaded_and_the_way_round(tmp_path: Path) -> None:
    code = (
        "from imsm.data.sources import DataSource, load_examples\n"
        "from imsm.data.task import Task\n"
        f"task = Task(**{task_values('freebaseqa')!r})\n"
        "source = DataSource(kind='hub')\n"
        "load_examples(task, 'test', source=source, prompts='paper', limit=None)\n"
    )
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert "UserError: The hub's dataset KelvinJiang/freebase_qa (split test, revision" in run.stderr
    assert "hf download KelvinJiang/freebase_qa --revision refs/convert/parquet" in run.stderr
    assert "data.mirror_dir=" in run.stderr


def test_importing_the_data_modules_is_quick() -> None:
    code = (
        "import sys, imsm.data.sources, imsm.data.tokenization, imsm.data.batching\n"
        "import imsm.evaluation.scoring\n"
        "print([m for m in ('torch', 'transformers', 'datasets', 'evaluate', 'sklearn', 'pandas')"
        " if m in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"
