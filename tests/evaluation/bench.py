"""A tiny evaluation: a random backbone and four examples in a local folder."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from pathlib import Path

from transformers import AutoTokenizer

from imsm.data.sources import DataSource
from imsm.data.task import Task
from imsm.distributed.context import DistributedContext
from imsm.evaluation.eval_set import EvalSet, load_eval_set
from imsm.evaluation.evaluator import EvalResult, evaluate
from imsm.models.builder import build_model
from imsm.models.siamese.model import SiameseForCausalLM
from tests.helpers.tiny_backbone import save_backbone

ROWS = [{"input": f"say {word}:", "output": word} for word in ("red", "green", "blue", "black")]


class Bench:
    """A tiny model, four examples, and the number of times the model was loaded."""

    def __init__(self, root: Path) -> None:
        self.root = root
        (root / "data").mkdir(exist_ok=True)
        lines = "".join(json.dumps(row) + "\n" for row in ROWS)
        (root / "data" / "test.jsonl").write_text(lines)
        texts = [text for row in ROWS for text in (f"{row['input']} {row['output']}", row["output"])]
        self.backbone = save_backbone(root / "backbone", texts=texts)
        self.tokenizer = AutoTokenizer.from_pretrained(self.backbone, padding_side="left")
        self.loaded = 0

    def model(self) -> SiameseForCausalLM:
        self.loaded += 1
        return build_model(
            backbone={"name_or_path": str(self.backbone)},
            adapter=None,
            gate=None,
            pooling="mean",
            stream="original",
            seed=0,
        )

    def eval_set(self, *, max_new_tokens: int = 4) -> EvalSet:
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
        return load_eval_set(
            task,
            source=DataSource(kind="local", path=str(self.root / "data")),
            prompt_style="paper",
            limit=None,
            tokenizer=self.tokenizer,
            closed_vocabulary=False,
            chat=False,
        )

    def evaluate(
        self,
        *,
        fingerprint: str = "one",
        max_new_tokens: int = 4,
        metrics: tuple[str, ...] = ("contain", "exact_match"),
        static_cache: bool = False,
    ) -> EvalResult:
        return evaluate(
            self.eval_set(max_new_tokens=max_new_tokens),
            get_model=self.model,
            stream="original",
            tokenizer=self.tokenizer,
            model_fingerprint=fingerprint,
            metrics={"strict": metrics, "paper_code": ["token_f1"]},
            protocol="strict",
            batch_size=2,
            response_cache_dir=self.root / "response_cache",
            output_dir=self.root / "out",
            label="x",
            dist_context=DistributedContext(),
            static_cache=static_cache,
        )

    def rows(self) -> list[dict]:
        lines = (self.root / "out" / "predictions.jsonl").read_text().splitlines()
        return [json.loads(line) for line in lines]

    def cache_file(self, fingerprint: str = "one") -> Path:
        return self.root / "response_cache" / f"{fingerprint}.sqlite"


def cached_rows(path: Path) -> dict[str, dict]:
    """Return all rows of a response cache by key."""
    with closing(sqlite3.connect(path)) as connection:
        return {key: json.loads(row) for key, row in connection.execute("SELECT key, row FROM responses")}
