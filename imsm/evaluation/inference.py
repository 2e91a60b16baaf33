"""Asking a stream what the ledger does not hold yet: raw answers, and how likely the golds are.

A prompt is read once, for its accepted answers and for the stream's own.

Legend: N items.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from functools import cache
from typing import TYPE_CHECKING

from imsm.data.batching import evaluation_order
from imsm.data.tokenization import answer_tokens
from imsm.evaluation.generation import generate_responses
from imsm.evaluation.likelihood import TokenIds, log_likelihoods
from imsm.evaluation.response_cache import ResponseCache, Row
from imsm.models.siamese.decoding_session import DecodingSession
from imsm.utils.errors import RunError
from imsm.utils.hashing import hash_json
from imsm.utils.oom import AdaptiveBatchSize
from imsm.utils.progress import progress_bar

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from imsm.distributed.context import DistributedContext
    from imsm.evaluation.eval_set import EvalSet
    from imsm.models.siamese.model import SiameseForCausalLM

_VERSION = 4
"""Of what a row holds; another one asks anew."""
MAX_REFERENCES = 8
"""So many of an item's accepted answers are weighed, the first ones."""
GetModel = Callable[[], "SiameseForCausalLM"]


def run_inference(
    eval_set: EvalSet,
    *,
    get_model: GetModel,
    stream: str,
    tokenizer: PreTrainedTokenizerBase,
    fingerprint: str,
    response_cache: ResponseCache,
    batch_size: int,
    label: str,
    dist_context: DistributedContext,
) -> tuple[list[Row], list[Row | None]]:
    """Every item's raw answer, and its likeliest accepted answer.

    Args:
        test: what is asked.
        model: gives the model; called only if something is missing.
        stream: who answers.
        tokenizer: the backbone's.
        fingerprint: identifies backbone, adapter, gate, precision and stream.
        response_cache: holds what was asked before, and keeps each batch as soon as it is answered.
        batch_size: prompts in one pass.
        label: what the progress bar says.
        dist_context: the processes that share the batches out.

    Returns:
        N rows of {text, tokens, ended, gate_mean, gate_tokens, gate_pieces,
        seconds}, and N of {loglik, tokens, seconds}:
        the sum of ln p over the answer's tokens; None where an item has no answer of any token.
    """
    golds = _golds(eval_set, tokenizer)
    settings = [eval_set.task.max_new_tokens, eval_set.task.stop]
    answer_keys = [hash_json([_VERSION, fingerprint, p.prompt_ids, *settings]) for p in eval_set.prompts]
    gold_keys = [
        [hash_json([_VERSION, fingerprint, "gold", prompt.prompt_ids, ids]) for ids in own]
        for prompt, own in zip(eval_set.prompts, golds, strict=True)
    ]

    then = max([eval_set.task.max_new_tokens, *(len(ids) for own in golds for ids in own)])

    @cache
    def answering() -> SiameseForCausalLM:
        found = get_model()
        found.stream = stream  # type: ignore[assignment]
        return found

    def asked(places: Sequence[int], missing: set[str]) -> list[dict[str, Row]]:
        weighed = any(not missing.isdisjoint(gold_keys[place]) for place in places)
        answered = any(answer_keys[place] in missing for place in places)
        answers, weights = _prefill_and_decode(
            answering(),
            tokenizer,
            eval_set,
            places,
            golds=[golds[place] for place in places] if weighed else None,
            answered=answered,
            then=then,
        )
        found: list[dict[str, Row]] = [{} for _ in places]
        for index, place in enumerate(places):
            if weighed:
                found[index] |= dict(zip(gold_keys[place], weights[index], strict=True))
            if answered:
                found[index][answer_keys[place]] = answers[index]
        return found

    rows = _through_cache(
        [[key, *own] for key, own in zip(answer_keys, gold_keys, strict=True)],
        lengths=[len(prompt.prompt_ids) for prompt in eval_set.prompts],
        compute=asked,
        response_cache=response_cache,
        batch_size=batch_size,
        label=label,
        dist_context=dist_context,
    )
    weights = [[rows[key] for key in own] for own in gold_keys]
    best = [max(own, key=lambda row: row["loglik"], default=None) for own in weights]
    return [rows[key] for key in answer_keys], best


def _golds(test: EvalSet, tokenizer: PreTrainedTokenizerBase) -> list[list[TokenIds]]:
    """Each item's accepted answers as tokens; those of no token are left out."""
    return [
        [ids for ids in dict.fromkeys(answer_tokens(tokenizer, example.golds[:MAX_REFERENCES])) if ids]
        for example in test.examples
    ]


def _prefill_and_decode(
    model: SiameseForCausalLM,
    tokenizer: PreTrainedTokenizerBase,
    test: EvalSet,
    places: Sequence[int],
    *,
    golds: Sequence[Sequence[TokenIds]] | None,
    answered: bool,
    then: int,
) -> tuple[list[Row], list[list[Row]]]:
    """The answers (none if they are not asked for) and the likelihoods of ``golds`` (likewise).

    So many tokens at most come ``then``, whatever is asked for: how prompts are read depends on it.
    """
    started = time.monotonic()
    pad_id = tokenizer.pad_token_id
    reading = DecodingSession(model, [test.prompts[place].prompt_ids for place in places], pad_id=pad_id, then=then)
    reading.logits[0, 0].item()  # waits for the device, so that the times are right
    read = time.monotonic()
    weights: list[list[Row]] = []
    if golds is not None:
        sums = log_likelihoods(reading, golds, pad_id=pad_id)
        each = time.monotonic() - (read if answered else started)
        each /= max(1, sum(map(len, golds)))
        weights = [
            [{"loglik": value, "tokens": len(ids), "seconds": each} for value, ids in zip(values, own, strict=True)]
            for values, own in zip(sums, golds, strict=True)
        ]
    answers: list[Row] = []
    if answered:
        weighed = time.monotonic()
        limit, stop = test.task.max_new_tokens, test.task.stop
        made = generate_responses(reading, tokenizer, max_new_tokens=limit, stop=stop)
        each = (read - started + time.monotonic() - weighed) / len(places)
        answers = [{**asdict(answer), "seconds": each} for answer in made]
    return answers, weights


def _through_cache(
    keys: Sequence[Sequence[str]],
    *,
    lengths: Sequence[int],
    compute: Callable[[Sequence[int], set[str]], list[dict[str, Row]]],
    response_cache: ResponseCache,
    batch_size: int,
    label: str,
    dist_context: DistributedContext,
) -> dict[str, Row]:
    """The rows of all items' keys; what is missing is computed and kept batch by batch.

    Batches are formed over all items, missing or not, and the processes share them out whole: so a
    row is what it would have been in one process that nobody interrupted, unless memory did not
    suffice and a batch was asked in halves.
    """
    held = response_cache.read()
    every = dict.fromkeys(key for own in keys for key in own)
    missing = set(dist_context.run_on_main(lambda: [key for key in every if key not in held]))
    batches = [
        batch
        for batch in evaluation_order(lengths, batch_size=batch_size)
        if any(not missing.isdisjoint(keys[place]) for place in batch)
    ][dist_context.rank :: dist_context.size]
    made: dict[str, Row] = {}
    fitting = AdaptiveBatchSize(lambda places: compute(places, missing), what="prompts", key="evaluation.batch_size")
    for found in _shown(batches, fitting, label=label, shown=dist_context.is_main):
        new = {key: row for rows in found for key, row in rows.items()}
        new = {key: row for key, row in new.items() if key in missing and key not in made}
        response_cache.append(new)
        made |= new
    if missing:
        for told in dist_context.all_gather(json.dumps(made)):
            held |= json.loads(told)
    if not held.keys() >= every.keys():
        raise RunError(
            f"{response_cache.path}: process {dist_context.rank} does not see the answers that process 0 sees; "
            "the runs' folder must be on a disk that all nodes share"
        )
    return held


def _shown(
    batches: Sequence[Sequence[int]],
    compute: Callable[[Sequence[int]], list[dict[str, Row]]],
    *,
    label: str,
    shown: bool,
) -> Iterator[list[dict[str, Row]]]:
    """What is computed of each batch, under a progress bar."""
    if not batches:
        return
    total = sum(map(len, batches))
    with progress_bar(total=total, label=label, unit="item", keep=False, shown=shown) as done:
        for batch in batches:
            yield compute(batch)
            done.update(len(batch))
