"""Evaluate one stream of a model on one task.

    prompts -> response cache (responses, likelihoods) -> predictions.jsonl (answers, scores) -> result.json

Inference runs only for responses that the cache lacks; answer extraction and scoring always run.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy
from transformers import PreTrainedTokenizerBase

from imsm.data.example import Example
from imsm.data.task import task_module
from imsm.data.tokenization import TokenizedExample
from imsm.distributed.context import DistributedContext
from imsm.evaluation.eval_set import EvalSet
from imsm.evaluation.inference import GetModel, run_inference
from imsm.evaluation.kl_to_original import mean_kl
from imsm.evaluation.predictions import write_predictions
from imsm.evaluation.response_cache import ResponseCache, Row
from imsm.evaluation.scoring import score_predictions
from imsm.evaluation.statistics.bootstrap import standard_error
from imsm.evaluation.statistics.forgetting import chance_level, is_above_chance
from imsm.models.siamese.skip import count_choices
from imsm.utils.hashing import hash_json


@dataclass(kw_only=True)
class EvalResult:
    """Result of one stream on one task, as stored in `result.json`.

    Attributes:
        protocol: The protocol of ``metrics``, ``headline`` and ``unparsed``.
        metrics: Metric values in points (0 to 100).
        headline: Name of the first metric.
        seconds: Generation time.
        unparsed: Number of responses without an extractable answer.
        truncated: Number of responses that reached the token limit.
        reference_loglik: Mean over examples of ln p of the most likely accepted answer.
        kl_to_original: Mean KL divergence from the original in nats (`imsm.evaluation.kl_to_original`); None for the
            original and where it was not computed.
        gate_mean: Mean weight of the original stream; None unless the stream is "interwoven".
        decided: With `skip_threshold`: number of examples that continued with the "tuned" stream, the "original" one
            or "both".
        chance: Headline score of the best constant answer; 0 for open questions.
        above_chance: Whether the headline score is two standard errors above it.
        protocols: metrics, headline and unparsed of every protocol.
        predictions_sha256: SHA-256 of `predictions.jsonl`; None in processes that do not write it.
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
    kl_to_original: float | None
    gate_mean: float | None
    chance: float
    above_chance: bool
    protocols: dict[str, dict[str, Any]]
    predictions_sha256: str | None
    decided: dict[str, int] | None = None


def evaluate(
    eval_set: EvalSet,
    *,
    get_model: GetModel,
    stream: str,
    tokenizer: PreTrainedTokenizerBase,
    model_fingerprint: str,
    metrics: Mapping[str, Sequence[str]],
    protocol: str,
    batch_size: int | None,
    response_cache_dir: Path,
    output_dir: Path,
    label: str,
    dist_context: DistributedContext,
    kl: bool = False,
    static_cache: bool = False,
) -> EvalResult:
    """Run inference for uncached prompts, score all responses and write the predictions.

    The arguments are those of `run_inference` and `score_responses`; ``response_cache_dir`` is the
    directory of all response caches. ``kl`` also computes a trained stream's KL divergence from the original.
    """
    response_cache = ResponseCache(response_cache_dir, fingerprint=model_fingerprint)
    responses, references = run_inference(
        eval_set,
        get_model=get_model,
        stream=stream,
        tokenizer=tokenizer,
        fingerprint=model_fingerprint,
        response_cache=response_cache,
        batch_size=batch_size,
        label=label,
        dist_context=dist_context,
        static_cache=static_cache,
    )
    kl_to_original = None
    if kl and stream != "original":
        kl_to_original = mean_kl(
            eval_set,
            get_model=get_model,
            stream=stream,
            tokenizer=tokenizer,
            fingerprint=model_fingerprint,
            response_cache=response_cache,
            batch_size=batch_size,
            label=f"{label}, KL to the original",
            dist_context=dist_context,
        )
    return score_responses(
        eval_set,
        responses=responses,
        references=references,
        metrics=metrics,
        protocol=protocol,
        output_dir=output_dir,
        dist_context=dist_context,
        kl_to_original=kl_to_original,
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
    kl_to_original: float | None = None,
) -> EvalResult:
    """Extract and score the answers; rank 0 writes `predictions.jsonl` to ``output_dir``.

    ``responses`` and ``references`` are rows as returned by `run_inference`. ``metrics`` are names by
    protocol: "strict" scores extracted answers, "paper_code" raw responses; ``protocol`` is reported.
    """
    extract = task_module(eval_set.task).extract
    # Always from the raw text, so that a corrected extractor needs no new inference.
    texts = {"strict": [extract(row["text"]) for row in responses], "paper_code": [row["text"] for row in responses]}
    accepted = [example.golds for example in eval_set.examples]
    groups = [example.group for example in eval_set.examples]
    protocols: dict[str, dict[str, Any]] = {}
    scores: list[dict[str, float]] = [{} for _ in responses]
    for name, metric_names in metrics.items():
        totals, example_scores = score_predictions(metric_names, texts[name], accepted, groups)
        protocols[name] = {
            "metrics": totals,
            "headline": next(iter(totals)),
            "unparsed": sum(not text.strip() for text in texts[name]),
        }
        scores = [known | new for known, new in zip(scores, example_scores, strict=True)]
    # Every rank has all responses, which run_inference gathers; two writers would race.
    predictions_sha256 = None
    if dist_context.is_main:
        columns = (eval_set.examples, eval_set.prompts, responses, references, texts["strict"], scores)
        predictions_sha256 = write_predictions(output_dir, (_prediction(*row) for row in zip(*columns, strict=True)))
    return EvalResult(
        num_examples=len(responses),
        protocol=protocol,
        **protocols[protocol],
        seconds=sum(row["seconds"] for row in responses),
        new_tokens=sum(row["tokens"] for row in responses),
        truncated=sum(not row["ended"] for row in responses),
        reference_loglik=_mean([row["loglik"] for row in references if row is not None]),
        kl_to_original=kl_to_original,
        gate_mean=_mean([row["gate_mean"] for row in responses if row["gate_mean"] is not None]),
        **_chance(eval_set.examples, [row[protocols[protocol]["headline"]] for row in scores]),
        protocols=protocols,
        predictions_sha256=predictions_sha256,
        decided=count_choices([row["choice"] for row in responses if "choice" in row]),
    )


def _chance(examples: Sequence[Example], scores: Sequence[float]) -> dict[str, Any]:
    """Return ``chance`` and ``above_chance`` of an `EvalResult`."""
    chance = chance_level([example.golds for example in examples])
    error, _ = standard_error(numpy.asarray(scores, dtype=float), [example.group for example in examples])
    above = is_above_chance(100 * fmean(scores), chance=chance, items=len(scores), error=100 * error or None)
    return {"chance": chance, "above_chance": above}


def _prediction(
    example: Example,
    prompt: TokenizedExample,
    response: Row,
    reference: Row | None,
    answer: str,
    scores: Mapping[str, float],
) -> dict[str, Any]:
    return {
        "id": example.id,
        "group": example.group,
        "prompt": example.prompt,
        "prompt_hash": hash_json(prompt.prompt_ids),
        "response": response["text"],
        "tokens": response["tokens"],
        "ended": response["ended"],
        "answer": answer,
        "references": list(example.golds),
        "scores": scores,
        "reference_loglik": reference and reference["loglik"],
        "reference_tokens": reference and reference["tokens"],
        "gate_mean": response["gate_mean"],
        "gate_per_token": response["gate_per_token"],
        "token_texts": response["token_texts"],
    }


def _mean(values: Sequence[float]) -> float | None:
    return fmean(values) if values else None
