"""Responses that another engine generates, filed in the response cache; and how they agree with our own.

An engine receives all missing prompts of all tasks in one call, because it forms its batches itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from imsm.data.task import task_module
from imsm.evaluation.eval_set import EvalSet
from imsm.evaluation.generation import build_generation, end_of_response
from imsm.evaluation.inference import RESPONSE, response_keys
from imsm.evaluation.response_cache import ResponseCache, Row
from imsm.evaluation.scoring import score_predictions


@dataclass(frozen=True, kw_only=True)
class EngineRequest:
    """A prompt's token ids, and the number of tokens to generate at most."""

    prompt: Sequence[int]
    max_tokens: int


@dataclass(frozen=True, kw_only=True)
class EngineAnswer:
    """Generated token ids, up to EOS or the limit, the gate at each of them or None, and the seconds they took."""

    tokens: Sequence[int]
    gates: Sequence[float] | None
    seconds: float


Generate = Callable[[Sequence[EngineRequest]], Sequence[EngineAnswer]]


def fill_responses(
    eval_sets: Mapping[str, EvalSet],
    *,
    generate: Generate,
    tokenizer: PreTrainedTokenizerBase,
    eos: Sequence[int],
    fingerprint: str,
    response_cache: ResponseCache,
) -> None:
    """Generate the responses of all tasks that the cache lacks, and add them to it.

    ``fingerprint`` is the hash of the model and the engine.
    """
    missing: dict[str, tuple[EvalSet, Sequence[int]]] = {}
    for eval_set in eval_sets.values():
        keys = response_keys(eval_set, fingerprint=fingerprint)
        known = response_cache.get(set(keys))
        missing |= {
            key: (eval_set, prompt.prompt_ids)
            for key, prompt in zip(keys, eval_set.prompts, strict=True)
            if key not in known
        }
    if not missing:
        return
    requests = [EngineRequest(prompt=ids, max_tokens=each.task.max_new_tokens) for each, ids in missing.values()]
    answers = generate(requests)
    rows: dict[str, Row] = {}
    for (key, (eval_set, _)), answer in zip(missing.items(), answers, strict=True):
        limit, stop = eval_set.task.max_new_tokens, eval_set.task.stop
        length = end_of_response(answer.tokens, tokenizer, eos=eos, stop=stop)
        gates = None if answer.gates is None else list(answer.gates[:length])
        generation = build_generation(
            list(answer.tokens[:length]), gates, tokenizer, choice=None, eos=eos, limit=limit
        )
        row: dict[str, Any] = {**asdict(generation), "seconds": answer.seconds}
        rows[key] = {name: row[name] for name in RESPONSE}
    response_cache.append(rows)


def agreement(
    eval_set: EvalSet,
    *,
    fingerprint: str,
    response_cache: ResponseCache,
    other_fingerprint: str,
    other_cache: ResponseCache,
    metric: str,
) -> dict[str, Any] | None:
    """Compare the cached responses of two engines; None if one of them lacks some.

    Returns:
        {examples, equal, other_score}: their number, the number of equal texts, and the other engine's score in points
        under ``metric``.
    """
    texts = []
    for print_, cache in ((fingerprint, response_cache), (other_fingerprint, other_cache)):
        keys = response_keys(eval_set, fingerprint=print_)
        rows = cache.get(set(keys))
        if not all(key in rows for key in keys):
            return None
        texts.append([str(rows[key]["text"]) for key in keys])
    extract = task_module(eval_set.task).extract
    accepted = [example.golds for example in eval_set.examples]
    totals, _ = score_predictions([metric], [extract(text) for text in texts[1]], accepted)
    equal = sum(one == other for one, other in zip(*texts, strict=True))
    return {"examples": len(texts[0]), "equal": equal, "other_score": next(iter(totals.values()))}
