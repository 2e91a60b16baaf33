"""Run a stream for whatever the response cache lacks: responses, and likelihoods of accepted answers.

Each prompt is prefilled once, for its accepted answers and its response. N is the number of examples.
"""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict
from functools import cache, partial
from itertools import chain
from types import UnionType
from typing import Any

from transformers import PreTrainedTokenizerBase

from imsm.data.batching import evaluation_order
from imsm.data.tokenization import encode_answers
from imsm.distributed.context import DistributedContext
from imsm.evaluation.auto_batch_size import auto_batch_size
from imsm.evaluation.eval_set import MAX_REFERENCES, EvalSet
from imsm.evaluation.generation import generate_responses
from imsm.evaluation.likelihood import TokenIds, log_likelihoods
from imsm.evaluation.response_cache import ResponseCache, Row
from imsm.models.siamese.decoding_session import DecodingSession
from imsm.models.siamese.model import SiameseForCausalLM
from imsm.utils.errors import RunError
from imsm.utils.hashing import hash_json
from imsm.utils.oom import AdaptiveBatchSize
from imsm.utils.progress import progress_bar

_VERSION = 5
"""Format of the cached rows; part of every key."""
GetModel = Callable[[], SiameseForCausalLM]
Shape = dict[str, type | UnionType]
RESPONSE: Shape = {
    "text": str,
    "tokens": int,
    "ended": bool,
    "gate_mean": float | None,
    "gate_per_token": list | None,
    "token_texts": list | None,
    "seconds": float,
}
_OPTIONAL: Shape = {"choice": str}
"""Set with `skip_threshold` only, so that rows of other models stay as they were."""
_REFERENCE: Shape = {"loglik": float, "tokens": int, "seconds": float}


def run_inference(
    eval_set: EvalSet,
    *,
    get_model: GetModel,
    stream: str,
    tokenizer: PreTrainedTokenizerBase,
    fingerprint: str,
    response_cache: ResponseCache,
    batch_size: int | None,
    label: str,
    dist_context: DistributedContext,
    static_cache: bool = False,
) -> tuple[list[Row], list[Row | None]]:
    """Return every example's response and its most likely accepted answer.

    ``fingerprint`` is the hash of backbone, adapter, gate, precision and stream ("original", "tuned" or
    "interwoven"). ``get_model`` is called only if a row is missing. ``batch_size`` is the number of
    prompts per forward pass (None: `auto_batch_size`), and ``label`` the text of the progress bar.
    ``static_cache`` is that of `generate_responses`; ``fingerprint`` has to differ with it.

    Returns:
        N rows {text, tokens, ended, gate_mean, gate_per_token, token_texts, seconds}, with `skip_threshold` also
        {choice}, and N rows {loglik, tokens, seconds} with the sum of ln p over the answer's tokens; None for an
        example whose accepted answers have no tokens.
    """
    references = _accepted_answers(eval_set, tokenizer)
    keys_of_responses = response_keys(eval_set, fingerprint=fingerprint)
    reference_keys = [
        [hash_json([_VERSION, fingerprint, "reference", prompt.prompt_ids, ids]) for ids in answers]
        for prompt, answers in zip(eval_set.prompts, references, strict=True)
    ]
    # The same for every batch, because it decides how prompts are prefilled.
    max_new_tokens = max([eval_set.task.max_new_tokens, *(len(ids) for answers in references for ids in answers)])

    # Loaded once, and not at all if every row is cached.
    @cache
    def model() -> SiameseForCausalLM:
        loaded = get_model()
        loaded.stream = stream  # type: ignore[assignment]
        return loaded

    def compute(indices: Sequence[int], missing: set[str]) -> list[dict[str, Row]]:
        keys = keys_of_responses, reference_keys, references
        options: dict[str, Any] = {"max_new_tokens": max_new_tokens, "static_cache": static_cache}
        return _compute_rows(model(), tokenizer, eval_set, indices, missing, *keys, **options)

    lengths = [len(prompt.prompt_ids) for prompt in eval_set.prompts]
    automatic = partial(auto_batch_size, model, lengths, max_new_tokens=max_new_tokens, dist_context=dist_context)
    rows = through_cache(
        [[key, *keys] for key, keys in zip(keys_of_responses, reference_keys, strict=True)],
        shapes=dict.fromkeys(chain(*reference_keys), _REFERENCE) | dict.fromkeys(keys_of_responses, RESPONSE),
        lengths=lengths,
        compute=compute,
        response_cache=response_cache,
        batch_size=batch_size or automatic,
        label=label,
        dist_context=dist_context,
    )
    best = [max((rows[key] for key in keys), key=lambda row: row["loglik"], default=None) for keys in reference_keys]
    return [rows[key] for key in keys_of_responses], best


def _accepted_answers(eval_set: EvalSet, tokenizer: PreTrainedTokenizerBase) -> list[list[TokenIds]]:
    """Return each example's accepted answers, without duplicates, and without answers that have no tokens."""
    return [
        [ids for ids in dict.fromkeys(encode_answers(tokenizer, example.golds[:MAX_REFERENCES])) if ids]
        for example in eval_set.examples
    ]


def response_keys(eval_set: EvalSet, *, fingerprint: str) -> list[str]:
    """Return the response cache's key of each example's response."""
    settings = [eval_set.task.max_new_tokens, eval_set.task.stop]
    return [hash_json([_VERSION, fingerprint, prompt.prompt_ids, *settings]) for prompt in eval_set.prompts]


def _compute_rows(
    model: SiameseForCausalLM,
    tokenizer: PreTrainedTokenizerBase,
    eval_set: EvalSet,
    indices: Sequence[int],
    missing: set[str],
    response_keys: Sequence[str],
    reference_keys: Sequence[Sequence[str]],
    references: Sequence[Sequence[TokenIds]],
    *,
    max_new_tokens: int,
    static_cache: bool,
) -> list[dict[str, Row]]:
    """Compute the rows of one batch by key: its responses and its likelihoods, as far as they are missing.

    Prefill time counts toward the responses if there are any, else toward the likelihoods.
    """
    # All rows of a batch or none, so that a row does not depend on which others are cached.
    needs_references = any(not missing.isdisjoint(reference_keys[index]) for index in indices)
    needs_responses = any(response_keys[index] in missing for index in indices)
    rows: list[dict[str, Row]] = [{} for _ in indices]
    started = time.monotonic()
    pad_id = tokenizer.pad_token_id
    prompts = [eval_set.prompts[index].prompt_ids for index in indices]
    session = DecodingSession(model, prompts, pad_id=pad_id, max_new_tokens=max_new_tokens)
    # Synchronizes the device, so that the times are correct.
    session.logits[0, 0].item()
    prefilled = time.monotonic()
    # Before the responses: generation consumes the session.
    if needs_references:
        sums = log_likelihoods(session, [references[index] for index in indices], pad_id=pad_id)
        seconds = time.monotonic() - (prefilled if needs_responses else started)
        seconds /= max(1, sum(map(len, sums)))
        for row, index, values in zip(rows, indices, sums, strict=True):
            for key, value, ids in zip(reference_keys[index], values, references[index], strict=True):
                row[key] = {"loglik": value, "tokens": len(ids), "seconds": seconds}
    if needs_responses:
        scored = time.monotonic()
        limit, stop = eval_set.task.max_new_tokens, eval_set.task.stop
        limits: dict[str, Any] = {"max_new_tokens": limit, "stop": stop}
        generations = generate_responses(session, tokenizer, **limits, static_cache=static_cache)
        seconds = (prefilled - started + time.monotonic() - scored) / len(indices)
        for row, index, generation in zip(rows, indices, generations, strict=True):
            response = {**asdict(generation), "seconds": seconds}
            row[response_keys[index]] = {
                key: value for key, value in response.items() if value is not None or key in RESPONSE
            }
    return rows


def through_cache(
    keys: Sequence[Sequence[str]],
    *,
    shapes: Mapping[str, Shape],
    lengths: Sequence[int],
    compute: Callable[[Sequence[int], set[str]], list[dict[str, Row]]],
    response_cache: ResponseCache,
    batch_size: int | Callable[[], int],
    label: str,
    dist_context: DistributedContext,
) -> dict[str, Row]:
    """Return the rows of all keys; compute the missing ones and cache them batch by batch.

    ``keys`` has the keys of each example, and ``shapes`` the shape of each key's row. ``compute`` is called with a
    batch of examples and the keys of all missing rows, and returns the rows of each of these examples by key.
    ``batch_size`` as a function is called if a row is missing.
    Batches are formed over all examples, cached or not, and each process computes complete batches, so
    that a row does not depend on interruptions or on the number of processes (except after
    out-of-memory, which halves the batch).
    """
    rows = response_cache.get(shapes, is_valid=lambda key, row: _has_shape(row, shapes[key]))
    # Rank 0 decides for all: on a network file system the ranks may read different rows.
    missing = set(dist_context.run_on_main(lambda: [key for key in shapes if key not in rows]))
    # `missing` is equal on all ranks, so they all call the function or none does.
    size = batch_size if isinstance(batch_size, int) else batch_size() if missing else 1
    # The batches are sorted by length; taking turns gives every rank about the same work.
    batches = [
        batch
        for batch in evaluation_order(lengths, batch_size=size)
        if any(not missing.isdisjoint(keys[index]) for index in batch)
    ][dist_context.rank :: dist_context.world_size]
    computed: dict[str, Row] = {}
    adaptive = AdaptiveBatchSize(
        lambda indices: compute(indices, missing), what="prompts", key="evaluation.batch_size"
    )
    total, shown = sum(map(len, batches)), dist_context.is_main and bool(batches)
    # processes whose batches are done take part in the others' passes through a sharded model
    together = dist_context.lock_step() if missing else nullcontext()
    with progress_bar(total=total, label=label, unit="item", keep=False, shown=shown) as bar, together:
        for batch in batches:
            new = {key: row for result in adaptive(batch) for key, row in result.items()}
            # Equal prompts share a key, in one batch or in several.
            new = {key: row for key, row in new.items() if key in missing and key not in computed}
            # Per batch, so that an interrupted evaluation resumes here.
            response_cache.append(new)
            computed |= new
            bar.update(len(batch))
    # `missing` is equal on all ranks, so they all enter this collective or none does.
    if missing:
        # Through JSON, so that computed rows equal rows read from the cache.
        for text in dist_context.all_gather(json.dumps(computed)):
            rows |= json.loads(text)
    if not rows.keys() >= shapes.keys():
        raise RunError(
            f"{response_cache.path}: rank {dist_context.rank} does not see the responses that rank 0 sees; "
            "set IMSM_RUNS to a directory shared by all nodes"
        )
    return rows


def _has_shape(row: Row, shape: Shape) -> bool:
    expected = {**_OPTIONAL, **shape}
    return row.keys() - _OPTIONAL.keys() == shape.keys() and all(isinstance(row[key], expected[key]) for key in row)
