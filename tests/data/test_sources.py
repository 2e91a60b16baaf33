"""Data sources: the same examples from each, and one clear message for what is wrong."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from imsm.data import sources
from imsm.data.example import Example
from imsm.data.sources import DataSource, check_source, load_examples
from imsm.data.task import HubDataset, Role, Task
from imsm.utils import trust
from imsm.utils.errors import UserError
from tests.data.mirrors import GLUE, PAIRS, mirror_source, write_lines, write_mirror
from tests.data.shipped import shipped_task

LOCAL_ROWS = [{"input": "Q: a\nA:", "output": "b"}, {"input": "Q: c\nA:", "output": ["d", "é"]}]


@pytest.fixture
def mirror(tmp_path: Path) -> Path:
    return write_mirror(tmp_path / "mirror")


def load(task: Task, source: DataSource, role: Role = "test", limit: int | None = None) -> list[Example]:
    """Load without `datasets`, whose reader `test_hub` covers."""
    return load_examples(task, role, source=source, prompt_style="paper", limit=limit, use_datasets=False)


@pytest.mark.parametrize("use_datasets", [True, False])
def test_examples_of_a_mirror(mirror: Path, use_datasets: bool) -> None:
    task = shipped_task("mrpc")
    check_source(task, source=mirror_source(mirror))
    examples = load_examples(
        task, "train", source=mirror_source(mirror), prompt_style="paper", limit=None, use_datasets=use_datasets
    )
    assert [example.id for example in examples] == [f"mrpc/train/{n}" for n in range(30)]
    assert examples[7].prompt.endswith("\nSentence2: Boat 7 went down .\nOuput:")


def test_a_mirror_without_a_card_is_read_by_datasets(tmp_path: Path) -> None:
    rows = [{"question": "what towns?", "answers": ["Lowmere"]}]
    write_lines(tmp_path / "stanfordnlp" / "web_questions" / "test.jsonl", rows)
    task, source = shipped_task("webq"), mirror_source(tmp_path)
    (example,) = load_examples(task, "test", source=source, prompt_style="paper", limit=None)
    assert example.golds == ("Lowmere",)


def test_the_miniature_is_a_mirror(mirror: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "MINIATURE", mirror)
    task = shipped_task("mrpc")
    assert load(task, DataSource(kind="miniature")) == load(task, mirror_source(mirror))


def test_a_limit_keeps_the_order_and_a_smaller_one_a_subset(mirror: Path) -> None:
    task, source = shipped_task("mrpc"), mirror_source(mirror)

    def ids(limit: int | None) -> list[str]:
        return [example.id for example in load(task, source, "train", limit=limit)]

    all_ids, ten, five = ids(None), ids(10), ids(5)
    assert len(ten) == 10
    assert ten == [name for name in all_ids if name in ten] != all_ids[:10]
    assert five == [name for name in ten if name in five]
    assert ten == ids(10)
    assert ids(99) == all_ids
    with pytest.raises(UserError, match="limit=0"):
        load(task, source, limit=0)


def test_check_and_load_report_the_same_missing_split(mirror: Path) -> None:
    task = shipped_task("mrpc").model_copy(update={"splits": {"train": ["train"], "test": ["dev"]}})
    for read in (lambda: check_source(task, source=mirror_source(mirror)), lambda: load(task, mirror_source(mirror))):
        with pytest.raises(UserError, match="no split dev"):
            read()
    check_source(task, source=mirror_source(mirror), roles=["train"])


def test_a_split_without_examples_is_a_user_error(tmp_path: Path) -> None:
    index = {"paragraph": 0, "question": 0, "answer": 0}
    row = {"paragraph": "A.", "question": "B?", "answer": "C", "label": 1, "idx": index}
    for split in ("train", "validation"):
        write_lines(tmp_path / "aps" / "super_glue" / "multirc" / f"{split}.jsonl", [row])
    hub = HubDataset(path="aps/super_glue", name=None, revision=None)
    task = shipped_task("multirc").model_copy(update={"hub": hub})
    with pytest.raises(UserError, match="is empty"):
        load_examples(task, "test", source=mirror_source(tmp_path), prompt_style="paper", limit=None)


def test_an_invalid_row_is_reported_with_its_location(mirror: Path) -> None:
    write_lines(mirror / GLUE / "mrpc" / "test.jsonl", [PAIRS[0], {**PAIRS[1], "label": -1}])
    with pytest.raises(UserError, match=r"nyu-mll/glue, test, row 2: label=-1"):
        load(shipped_task("mrpc"), mirror_source(mirror))
    write_lines(mirror / GLUE / "mrpc" / "train.jsonl", [{"text": "a"}])
    with pytest.raises(UserError, match=r"row 1: sentence1: is missing"):
        load(shipped_task("mrpc"), mirror_source(mirror), "train")


def test_an_error_in_a_task_module_is_reported_with_the_row(mirror: Path, tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "broken_task.py").write_text(
        "def examples(rows, *, split, prompt_style):\n    for row in rows:\n        yield row['nothing']\n"
        "def extract(response):\n    return response\n"
    )
    monkeypatch.setattr(trust, "_trusted_folders", [])
    monkeypatch.syspath_prepend(tmp_path)
    trust.trust_folder(tmp_path)
    task = shipped_task("mrpc").model_copy(update={"module": "broken_task"})
    with pytest.raises(UserError, match=r"row 1: is not a record of this dataset \(KeyError: 'nothing'\)"):
        load(task, mirror_source(mirror))


def test_a_role_without_a_split_is_a_user_error(mirror: Path) -> None:
    with pytest.raises(UserError, match=r"data\.splits\.train: freebaseqa has none"):
        load(shipped_task("freebaseqa"), mirror_source(mirror), "train")


@pytest.mark.parametrize("kind", ["hub", "mirror", "miniature"])
def test_a_task_without_a_hub_dataset_needs_a_local_folder(mirror: Path, kind: str) -> None:
    with pytest.raises(UserError, match=r"data=jsonl: .*data\.local_dir"):
        check_source(shipped_task("jsonl"), source=DataSource(kind=kind, path=str(mirror)))


def test_unknown_choices_are_rejected_with_the_key() -> None:
    with pytest.raises(UserError, match=r"data\.source=hup: must be one of hub, mirror"):
        DataSource(kind="hup")
    with pytest.raises(UserError, match=r"data\.source=mirror: .*data\.mirror_dir"):
        DataSource(kind="mirror")
    with pytest.raises(UserError, match=r"data\.prompt_style=exact: must be one of paper, corrected"):
        load_examples(
            shipped_task("mrpc"), "test", source=DataSource(kind="miniature"), prompt_style="exact", limit=None
        )


@pytest.mark.parametrize("name", ["jsonl", "gsm8k"])
def test_local_files_replace_the_rows_of_any_task(tmp_path: Path, name: str) -> None:
    write_lines(tmp_path / "test.jsonl", LOCAL_ROWS)
    source = DataSource(kind="local", path=str(tmp_path))
    check_source(shipped_task(name), source=source, roles=["test"])
    examples = load(shipped_task(name), source)
    assert [example.prompt for example in examples] == ["Q: a\nA:", "Q: c\nA:"]
    assert [example.golds for example in examples] == [("b",), ("d", "é")]


def test_errors_of_local_files(tmp_path: Path) -> None:
    task, source = shipped_task("jsonl"), DataSource(kind="local", path=str(tmp_path))
    write_lines(tmp_path / "train.jsonl", LOCAL_ROWS)
    with pytest.raises(UserError, match="no file for test"):
        check_source(task, source=source)
    write_lines(tmp_path / "test.jsonl", [])
    with pytest.raises(UserError, match=r"test\.jsonl: is empty"):
        load(task, source)
    write_lines(tmp_path / "test.jsonl", [LOCAL_ROWS[0], {"input": "a", "output": 5}])
    with pytest.raises(UserError, match=r"test\.jsonl, line 2: output: .*5 \(int\)"):
        load(task, source)


def test_offline_without_a_cache_is_a_user_error_with_the_download(tmp_path: Path) -> None:
    code = (
        "from imsm.data.sources import DataSource, load_examples\n"
        "from tests.data.shipped import shipped_task\n"
        "source = DataSource(kind='hub')\n"
        "load_examples(shipped_task('freebaseqa'), 'test', source=source, prompt_style='paper', limit=None)\n"
    )
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert "UserError: Hub dataset KelvinJiang/freebase_qa (split test, revision" in run.stderr
    assert "hf download KelvinJiang/freebase_qa --revision refs/convert/parquet" in run.stderr
    assert "data.mirror_dir=" in run.stderr


def test_importing_the_sources_does_not_import_slow_libraries() -> None:
    code = (
        "import sys, imsm.data.sources, imsm.data.tokenization\n"
        "import imsm.evaluation.scoring\n"
        "print([m for m in ('torch', 'transformers', 'datasets', 'evaluate', 'sklearn', 'pandas')"
        " if m in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"
