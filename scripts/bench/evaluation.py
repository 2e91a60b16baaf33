"""Evaluation of all tasks of the miniature, in batches and one example at a time."""

from __future__ import annotations

import tempfile
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING

from scripts.bench.comparison import Comparison
from scripts.bench.workloads import Setup, build

if TYPE_CHECKING:
    from imsm.models.siamese.model import SiameseForCausalLM

TASKS = ("mrpc", "cola", "ropes", "gsm8k", "webq", "freebaseqa", "multirc")
ITEMS = 200


def compare_evaluation(setup: Setup) -> list[Comparison]:
    """Time responses and log-likelihoods of the interwoven stream on the miniature's data.

    Raises:
        ImportError: pydantic or another library of the run configuration is missing.
    """
    from imsm.utils.options import load_option

    model = build(setup, stream="interwoven").eval()
    together = load_option("evaluation", "mini")["batch_size"]
    _seconds(model, together)  # imports and first passes
    speed = {batch: len(TASKS) * ITEMS / _seconds(model, batch) for batch in (together, 1)}
    return [
        Comparison(
            name=f"evaluating seven tasks, miniature: batches of {together} / one example at a time",
            ours=speed[together],
            theirs=speed[1],
            unit="examples/s",
            bar=8,
            at_least=True,
        )
    ]


def _seconds(model: SiameseForCausalLM, batch_size: int) -> float:
    from imsm.data.sources import DataSource
    from imsm.data.task import Task
    from imsm.distributed.context import DistributedContext
    from imsm.evaluation.eval_set import load_eval_set
    from imsm.evaluation.evaluator import evaluate
    from imsm.models.backbones.loading import load_tokenizer
    from imsm.utils.options import load_option

    tokenizer = load_tokenizer(name_or_path=model.config.backbone["name_or_path"])
    tests = []
    for name in TASKS:
        values = load_option("data", name)
        task = Task(**{key: values[key] for key in Task.model_fields if key in values})
        test = load_eval_set(
            task,
            source=DataSource(kind="miniature"),
            prompt_style="paper",
            limit=ITEMS,
            tokenizer=tokenizer,
            closed_vocabulary=True,
            chat=False,
        )
        tests.append((test, values["metrics"]))
    with tempfile.TemporaryDirectory() as folder:
        started = perf_counter()
        for test, metrics in tests:
            evaluate(
                test,
                get_model=lambda: model,
                stream="interwoven",
                tokenizer=tokenizer,
                model_fingerprint="bench",
                metrics={"strict": metrics, "paper_code": metrics},
                protocol="strict",
                batch_size=batch_size,
                response_cache_dir=Path(folder) / "response_cache",
                output_dir=Path(folder) / test.task.name,
                label=test.task.name,
                dist_context=DistributedContext(),
            )
        return perf_counter() - started
