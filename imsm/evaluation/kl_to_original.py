"""KL divergence of a trained stream from the original, on the tokens of the reference answers.

    mean over the answer positions of KL(p_original || p), in nats

It is measured where the first accepted answer is predicted: these positions exist for every task, are the same for
all runs of a backbone, and need no generation. The original's own answers would be other positions for each backbone,
and continue with what follows an answer up to the token limit. The end-of-text token is not among them, as in the
likelihoods.

Shapes: B examples, T tokens of the longest answer, V vocabulary size.
"""

import time
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from typing import cast

import torch
from transformers import PreTrainedTokenizerBase

from imsm.data.batching import collate_prompts
from imsm.data.tokenization import TokenizedExample, encode_answers
from imsm.distributed.context import DistributedContext
from imsm.evaluation.eval_set import EvalSet
from imsm.evaluation.inference import GetModel, Shape, through_cache
from imsm.evaluation.response_cache import ResponseCache, Row
from imsm.models.siamese.chunked_loss import logit_chunk_size
from imsm.models.siamese.kl import divergence_by_position
from imsm.models.siamese.model import SiameseForCausalLM
from imsm.models.siamese.streams import Stream
from imsm.utils.hashing import hash_json

_VERSION = 1
"""Format of the cached rows; part of every key."""
_MAX_TOKENS = 2048
"""Tokens per forward pass: larger passes use more memory, and on a CPU more time, without a gain."""
_SHAPE: Shape = {"kl": float, "tokens": int, "seconds": float}


def mean_kl(
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
) -> float | None:
    """Return the mean over all answer positions of KL(p_original || p); None without a position.

    The arguments are those of `imsm.evaluation.inference.run_inference`; sums over an example's positions are cached
    like responses.
    """
    pairs = [(example.golds[0], prompt) for example, prompt in zip(eval_set.examples, eval_set.prompts, strict=True)]
    answers = encode_answers(tokenizer, [answer for answer, _ in pairs])
    examples = [replace(prompt, answer_ids=ids) for (_, prompt), ids in zip(pairs, answers, strict=True) if ids]
    keys = [hash_json([_VERSION, fingerprint, "kl", each.prompt_ids, each.answer_ids]) for each in examples]

    # loaded once, and not at all if every row is cached
    @cache
    def model() -> SiameseForCausalLM:
        loaded = get_model()
        loaded.stream = cast("Stream", stream)
        return loaded

    def compute(indices: Sequence[int], _: set[str]) -> list[dict[str, Row]]:
        started, pad_id = time.monotonic(), cast(int, tokenizer.pad_token_id)
        chosen = [examples[index] for index in indices]
        sums = kl_sums(model(), chosen, pad_id=pad_id)
        seconds = (time.monotonic() - started) / len(indices)
        return [
            {keys[index]: {"kl": value, "tokens": len(example.answer_ids), "seconds": seconds}}
            for index, example, value in zip(indices, chosen, sums, strict=True)
        ]

    rows = through_cache(
        [[key] for key in keys],
        shapes=dict.fromkeys(keys, _SHAPE),
        lengths=[len(example.prompt_ids) + len(example.answer_ids) for example in examples],
        compute=compute,
        response_cache=response_cache,
        batch_size=batch_size,
        label=label,
        dist_context=dist_context,
    )
    if not keys:
        return None
    return float(sum(rows[key]["kl"] for key in keys) / sum(rows[key]["tokens"] for key in keys))


@torch.inference_mode()
def kl_sums(model: SiameseForCausalLM, examples: Sequence[TokenizedExample], *, pad_id: int) -> list[float]:
    """Return the sum over each example's answer positions of KL(p_original || p) of the selected stream."""
    width = max(len(example.prompt_ids) + len(example.answer_ids) for example in examples)
    longest = max(len(example.answer_ids) for example in examples)
    # a large vocabulary allows only some positions' float32 logits at a time
    positions = logit_chunk_size(model.backbone) or _MAX_TOKENS
    step = max(1, min(_MAX_TOKENS // width, positions // longest))
    sums: list[float] = []
    for start in range(0, len(examples), step):
        sums += _batch_sums(model, examples[start : start + step], pad_id=pad_id)
    return sums


def _batch_sums(model: SiameseForCausalLM, examples: Sequence[TokenizedExample], *, pad_id: int) -> list[float]:
    """Return the sums of one forward pass of each stream."""
    # padded on the left, so that all answers are at the end
    rows = [example.prompt_ids + example.answer_ids for example in examples]
    ids, mask = collate_prompts(rows, pad_id=pad_id, device=model.device)
    lengths = [len(example.answer_ids) for example in examples]
    longest = max(lengths)
    query_mask = mask.clone()
    for row, length in enumerate(lengths):
        query_mask[row, -length:] = 0
    # without the last token, which predicts nothing of the answer
    inputs = {"attention_mask": mask[:, :-1], "query_mask": query_mask[:, :-1], "logits_to_keep": longest}

    def logits(stream: Stream) -> torch.Tensor:
        model.stream = stream
        found: torch.Tensor = model(ids[:, :-1], use_cache=False, **inputs).logits  # (B, T, V)
        return found

    stream = model.stream
    try:
        both = logits("original"), logits(stream)
    finally:
        model.stream = stream
    values = [divergence_by_position(*(each[row, -length:] for each in both)) for row, length in enumerate(lengths)]
    return cast("list[float]", torch.stack([value.sum() for value in values]).tolist())
