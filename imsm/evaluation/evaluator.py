"""Judging one stream on one task, in stages that each leave a file.

    prompts -> ledger (raw answers, likelihoods) -> predictions.jsonl (answers, scores) -> result.json

A later stage never repeats an earlier one: only what the ledger does not hold is asked; extracting
and scoring are always done anew.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from imsm.data.task import task_module
from imsm.evaluation.inference import GetModel, run_inference
from imsm.evaluation.predictions import write_predictions
from imsm.evaluation.response_cache import ResponseCache, Row
from imsm.evaluation.scoring import score_predictions
from imsm.utils.hashing import hash_json

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from imsm.distributed.context import DistributedContext
    from imsm.evaluation.eval_set import EvalSet


@dataclass(kw_only=True)
class EvalResult:
    """One stream's result on one task, as `result.json` keeps it.

    ``metrics`` in points (0 to 100), ``unparsed``: answers that could not be extracted; both by
    the ``protocol`` asked for, ``protocols`` has them by each. ``seconds`` and ``new_tokens`` of
    generating, ``truncated``: generations that hit the token limit, ``gold_loglik``: the mean over
    items of ln p of the likeliest accepted answer, ``gate_mean``: over items (interwoven only).
    """

    num_examples: int
    protocol: str
    metrics: dict[str, float]
    headline: str
    seconds: float
    new_tokens: int
    unparsed: int
    truncated: int
    reference_loglik: float | None
    gate_mean: float | None
    protocols: dict[str, dict[str, Any]]


def evaluate(
    eval_set: EvalSet,
    *,
    get_model: GetModel,
    stream: str,
    tokenizer: PreTrainedTokenizerBase,
    model_fingerprint: str,
    metrics: Mapping[str, Sequence[str]],
    protocol: str,
    batch_size: int,
    response_cache_dir: Path,
    output_dir: Path,
    label: str,
    dist_context: DistributedContext,
) -> EvalResult:
    """Ask (what the ledger lacks), extract and score; the items are left in ``folder``.

    Args:
        test: what is asked.
        model: gives the model; called only if something has to be asked.
        stream: who answers.
        tokenizer: the backbone's.
        model_fingerprint: identifies backbone, adapter, gate and stream.
        metrics: names by protocol, the first of each is its headline: "strict" scores the extracted
            answers, "paper_code" the raw ones.
        protocol: whose metrics are the result's own.
        batch_size: prompts in one pass.
        response_cache_dir: the folder of all ledgers.
        folder: of this stream and task.
        label: what the progress bar says.
        dist_context: the processes that share the batches out; the first one writes.
    """
    response_cache = ResponseCache(response_cache_dir, fingerprint=model_fingerprint)
    rows, golds = run_inference(
        eval_set,
        get_model=get_model,
        stream=stream,
        tokenizer=tokenizer,
        fingerprint=model_fingerprint,
        response_cache=response_cache,
        batch_size=batch_size,
        label=label,
        dist_context=dist_context,
    )
    return score_responses(
        eval_set, responses=rows, references=golds, metrics=metrics, protocol=protocol, output_dir=output_dir, dist_context=dist_context
    )


def score_responses(
    eval_set: EvalSet,
    *,
    responses: Sequence[Row],
    references: Sequence[Row | None],
    metrics: Mapping[str, Sequence[str]],
    protocol: str,
    output_dir: Path,
    dist_context: DistributedContext,
) -> EvalResult:
    """Extract and score what was answered, N rows and likelihoods as `ask` gives them.

    A router, which answers with one or the other arm's rows, comes in here.
    """
    extract = task_module(eval_set.task).extract
    texts = {"strict": [extract(row["text"]) for row in responses], "paper_code": [row["text"] for row in responses]}
    accepted = [example.golds for example in eval_set.examples]
    protocols: dict[str, dict[str, Any]] = {}
    scores: list[dict[str, float]] = [{} for _ in responses]
    for name, names in metrics.items():
        totals, per_item = score_predictions(names, texts[name], accepted)
        protocols[name] = {
            "metrics": totals,
            "headline": next(iter(totals)),
            "unparsed": sum(not text.strip() for text in texts[name]),
        }
        scores = [before | new for before, new in zip(scores, per_item, strict=True)]
    if dist_context.is_main:
        write_predictions(
            output_dir,
            (
                {
                    "id": example.id,
                    "group": example.group,
                    "prompt_hash": hash_json(prompt.prompt_ids),
                    "generation": row["text"],
                    "tokens": row["tokens"],
                    "ended": row["ended"],
                    "answer": answer,
                    "references": list(example.golds),
                    "scores": score,
                    "reference_loglik": gold and gold["loglik"],
                    "reference_tokens": gold and gold["tokens"],
                    "gate_mean": row["gate_mean"],
                    "gate_per_token": row["gate_per_token"],
                    "token_texts": row["token_texts"],
                }
                for example, prompt, row, gold, answer, score in zip(
                    eval_set.examples, eval_set.prompts, responses, references, texts["strict"], scores, strict=True
                )
            ),
        )
    return EvalResult(
        num_examples=len(responses),
        protocol=protocol,
        metrics=protocols[protocol]["metrics"],
        headline=protocols[protocol]["headline"],
        seconds=sum(row["seconds"] for row in responses),
        new_tokens=sum(row["tokens"] for row in responses),
        unparsed=protocols[protocol]["unparsed"],
        truncated=sum(not row["ended"] for row in responses),
        reference_loglik=_mean([gold["loglik"] for gold in references if gold is not None]),
        gate_mean=_mean([row["gate_mean"] for row in responses if row["gate_mean"] is not None]),
        protocols=protocols,
    )


def _mean(values: Sequence[float]) -> float | None:
    return fmean(values) if values else None
