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
from functools import cache, partial
from typing import Any, cast

import torch
from transformers import PreTrainedTokenizerBase

from imsm.data.tokenization import TokenizedExample, encode_answers
from imsm.distributed.context import DistributedContext
from imsm.evaluation.auto_batch_size import auto_batch_size
from imsm.evaluation.eval_set import EvalSet
from imsm.evaluation.inference import GetModel, Shape, through_cache
from imsm.evaluation.response_cache import ResponseCache, Row
from imsm.models.siamese.chunked_loss import logit_chunk_size
from imsm.models.siamese.decoding_session import DecodingSession
from imsm.models.siamese.kl import divergence_by_position
from imsm.models.siamese.model import SiameseForCausalLM
from imsm.models.siamese.streams import Stream
from imsm.utils.hashing import hash_json

_VERSION = 1
"""Format of the cached rows; part of every key."""
_SHAPE: Shape = {"kl": float, "tokens": int, "seconds": float}


def mean_kl(
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
) -> float | None:
    """Return the mean over all answer positions of KL(p_original || p); None without a position.

    The arguments are those of `imsm.evaluation.inference.run_inference`; sums over an example's positions are cached
    like responses.
    """
    pairs = [(example.golds[0], prompt) for example, prompt in zip(eval_set.examples, eval_set.prompts, strict=True)]
    answers = encode_answers(tokenizer, [answer for answer, _ in pairs])
    examples = [replace(prompt, answer_ids=ids) for (_, prompt), ids in zip(pairs, answers, strict=True) if ids]
    keys = [hash_json([_VERSION, fingerprint, "kl", each.prompt_ids, each.answer_ids]) for each in examples]

    lengths = [len(example.prompt_ids) + len(example.answer_ids) for example in examples]

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

    # the lengths include the answers; a session for the original and one for the trained stream
    options: dict[str, Any] = {"max_new_tokens": 0, "dist_context": dist_context, "sessions": 2}
    rows = through_cache(
        [[key] for key in keys],
        shapes=dict.fromkeys(keys, _SHAPE),
        lengths=lengths,
        compute=compute,
        response_cache=response_cache,
        batch_size=batch_size or partial(auto_batch_size, model, lengths, **options),
        label=label,
        dist_context=dist_context,
    )
    if not keys:
        return None
    return float(sum(rows[key]["kl"] for key in keys) / sum(rows[key]["tokens"] for key in keys))


@torch.inference_mode()
def kl_sums(model: SiameseForCausalLM, examples: Sequence[TokenizedExample], *, pad_id: int) -> list[float]:
    """Return the sum over each example's answer positions of KL(p_original || p) of the selected stream."""
    answers = [example.answer_ids for example in examples]
    longest = max(map(len, answers))
    ids = torch.tensor([[*each, *[pad_id] * (longest - len(each))] for each in answers], device=model.device)
    mask = torch.tensor([[1] * len(each) + [0] * (longest - len(each)) for each in answers], device=model.device)
    trained = model.stream
    streams: tuple[Stream, Stream] = ("original", trained)
    sessions = []
    try:
        for model.stream in streams:
            prompts = [example.prompt_ids for example in examples]
            sessions.append(DecodingSession(model, prompts, pad_id=pad_id, max_new_tokens=longest))
        # the prompt's last logits predict the first token of the answer
        total = divergence_by_position(*(session.logits for session in sessions))  # (B,)
        # a large vocabulary allows only some positions' float32 logits (B, T, V) at a time
        chunk = logit_chunk_size(model.backbone)
        step = longest if chunk is None else max(1, chunk // len(ids))
        for start in range(0, longest - 1, step):
            stop = min(start + step, longest - 1)
            both = []
            for model.stream, session in zip(streams, sessions, strict=True):
                both.append(session.forward(ids[:, start:stop], mask=mask[:, start:stop]).flatten(0, 1))
            # padding has a divergence too; the mask removes it
            following = mask[:, start + 1 : stop + 1]
            total += (divergence_by_position(*both).view(len(ids), -1) * following).sum(dim=1)
    finally:
        model.stream = trained
    return cast("list[float]", total.tolist())
