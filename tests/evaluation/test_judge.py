"""Judging: the files of each stage, and what is generated again."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from imsm.assemble import assemble
from imsm.data.sources import Source
from imsm.data.task import Task
from imsm.evaluation.judge import Judgement, judge, load_test_set
from imsm.processes.world import World
from imsm.siamese.model import SiameseForCausalLM
from tests.backbone_folder import save_backbone

ROWS = [{"input": f"say {word}:", "output": word} for word in ("red", "green", "blue", "black")]


class Bench:
    """A tiny model, four items, and a count of how often the model was asked for."""

    def __init__(self, root: Path) -> None:
        self.root = root
        (root / "data").mkdir()
        lines = "".join(json.dumps(row) + "\n" for row in ROWS)
        (root / "data" / "test.jsonl").write_text(lines)
        texts = [row["input"] + row["output"] + " " + row["output"] for row in ROWS]
        self.backbone = save_backbone(root / "backbone", texts=texts)
        self.tokenizer = AutoTokenizer.from_pretrained(self.backbone, padding_side="left")
        self.asked = 0

    def model(self) -> SiameseForCausalLM:
        self.asked += 1
        return assemble(
            backbone={"path": str(self.backbone)},
            adapter=None,
            gate=None,
            pooling="mean",
            stream="original",
            seed=0,
        )

    def judge(self, *, fingerprint: str = "one", max_new_tokens: int = 4) -> Judgement:
        task = Task(
            name="colours",
            module="imsm.data.tasks.jsonl",
            hub=None,
            splits={"train": [], "test": ["test"]},
            metrics=["contain"],
            max_prompt_tokens=64,
            max_new_tokens=max_new_tokens,
            stop=None,
        )
        test = load_test_set(
            task,
            source=Source(kind="folder", path=str(self.root / "data")),
            prompts="verbatim",
            items=None,
            tokenizer=self.tokenizer,
            closed_vocabulary=False,
            chat=False,
        )
        return judge(
            test,
            model=self.model,
            stream="original",
            tokenizer=self.tokenizer,
            model_fingerprint=fingerprint,
            metrics=["contain", "exact_match"],
            batch_size=2,
            folder=self.root / "out",
            label="x",
            world=World(),
        )

    def rows(self, name: str) -> list[dict]:
        lines = (self.root / "out" / f"{name}.jsonl").read_text().splitlines()
        return [json.loads(line) for line in lines]


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def test_every_stage_leaves_a_file_with_every_item_once(bench: Bench) -> None:
    judgement = bench.judge()
    ids = [row["id"] for row in bench.rows("generations")]
    assert len(set(ids)) == 4
    assert [row["id"] for row in bench.rows("answers")] == ids
    assert [row["id"] for row in bench.rows("scores")] == ids
    assert bench.rows("answers")[0]["golds"] == ["red"]
    scores = [row["contain"] for row in bench.rows("scores")]
    assert judgement.metrics["contain"] == pytest.approx(100 * sum(scores) / 4)
    assert (judgement.items, judgement.headline) == (4, "contain")


def test_nothing_is_generated_twice(bench: Bench) -> None:
    first = bench.judge()
    again = bench.judge()
    assert bench.asked == 1
    assert again == first


def test_another_model_or_another_limit_is_asked_anew(bench: Bench) -> None:
    bench.judge()
    bench.judge(fingerprint="two")
    bench.judge(fingerprint="two", max_new_tokens=3)
    assert bench.asked == 3
    assert all(row["tokens"] <= 3 for row in bench.rows("generations"))


def test_a_raw_text_is_scored_again_without_the_model(bench: Bench) -> None:
    bench.judge()
    path = bench.root / "out" / "generations.jsonl"
    rows = bench.rows("generations")
    for row, wanted in zip(rows, ROWS, strict=True):
        row["text"] = f"it is {wanted['output']}"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    judgement = bench.judge()
    assert bench.asked == 1
    assert judgement.metrics == {"contain": 100.0, "exact_match": 0.0}


@pytest.mark.parametrize("damage", ["cut", "line", "settings"])
def test_a_damaged_file_is_never_trusted(bench: Bench, damage: str) -> None:
    first = bench.judge()
    generations = bench.root / "out" / "generations.jsonl"
    settings = bench.root / "out" / "settings.json"
    text = generations.read_text()
    if damage == "cut":
        generations.write_text(text[: len(text) // 2])
    elif damage == "line":
        generations.write_text("".join(text.splitlines(keepends=True)[1:]))
    else:
        settings.write_text("{")
    again = bench.judge()
    assert bench.asked == 2
    assert again.metrics == first.metrics
