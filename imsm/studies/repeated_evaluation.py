"""Generate the answers of a finished run again with other batch sizes, to measure the noise of greedy decoding.

Batches change the order of floating-point sums, and in low precision sometimes the most likely token. The response
cache is not read: it would return the first answers.
"""

from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from imsm.distributed.context import DistributedContext
from imsm.evaluation.evaluator import evaluate
from imsm.evaluation.predictions import task_dir
from imsm.pipeline.evaluate import metrics_of
from imsm.reporting.runs import ComparedRun
from imsm.studies.baselines.finished_run import FinishedRun
from imsm.utils.errors import UserError


def batch_sizes(first: int, count: int) -> list[int]:
    """Return ``count`` other batch sizes: smaller ones at equal distances, or those from 1 if too few are smaller."""
    if first > count:
        return [first * step // (count + 1) for step in range(count, 0, -1)]
    return [size for size in range(1, count + 2) if size != first]


def repeat_evaluation(
    run: FinishedRun, pair: tuple[ComparedRun, ComparedRun], *, count: int
) -> list[tuple[ComparedRun, ComparedRun]]:
    """Evaluate a run and its original again; return the pairs with the new predictions.

    Raises:
        UserError: The examples are not those of the run's result.
    """
    for task, eval_set in run.eval_sets.items():
        if pair[0].task_result(task).get("test_set") != eval_set.fingerprint:
            raise UserError(
                f"{run.folder}: was evaluated on other examples of {task} than its data has now; run the same command "
                "with mode=evaluate"
            )
    streams = run.config.method.stream, "original"
    repeats = []
    for size in batch_sizes(run.config.evaluation.fixed_batch_size, count):
        again, original = (
            _evaluate_again(run, compared, stream=stream, batch_size=size)
            for compared, stream in zip(pair, streams, strict=True)
        )
        repeats.append((again, original))
    return repeats


def _evaluate_again(run: FinishedRun, compared: ComparedRun, *, stream: str, batch_size: int) -> ComparedRun:
    tasks: dict[str, Mapping[str, Any]] = {}
    with TemporaryDirectory(prefix="imsm-check-") as name:
        folder = Path(name)
        for task, eval_set in run.eval_sets.items():
            evaluated = evaluate(
                eval_set,
                get_model=run.model,
                stream=stream,
                tokenizer=run.tokenizer,
                model_fingerprint=stream,
                metrics=metrics_of(run.config, eval_set),
                protocol=run.config.evaluation.protocol,
                batch_size=batch_size,
                response_cache_dir=folder / "response_cache",
                output_dir=task_dir(folder, task=task, test_set=eval_set.fingerprint),
                label=f"{stream}: {task}, batch size {batch_size}",
                dist_context=DistributedContext(),
            )
            entry = compared.task_result(task)
            tasks[task] = {**entry, "predictions_sha256": evaluated.predictions_sha256, "metrics": evaluated.metrics}
        evaluation = {**compared.result["evaluation"], "tasks": tasks}
        result = {**compared.result, "evaluation": evaluation}
        again = ComparedRun(label=compared.label, result=result, folder=folder)
        # read while the folder exists
        for task in tasks:
            again.predictions(task)
    return again
