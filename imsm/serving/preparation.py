"""From the body of a request to prompts and the engine's requests."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from imsm.data.chat_template import encode_chat
from imsm.data.tokenization import encode_prompts
from imsm.serving import engine
from imsm.serving.engine import Engine, Model, QueueFullError, Step
from imsm.serving.models import ModelCard, ServedRun
from imsm.serving.protocol import ApiError, ChatBody, CompletionBody, ResponseFormat
from imsm.serving.sampling import Sampling

_COMPLETION_TOKENS, _CHAT_TOKENS = 16, 256
"""Tokens to generate at most, without `max_tokens`."""


@dataclass(frozen=True)
class Generation:
    """The prompts of a request, and how to answer.

    Attributes:
        format: Builds the response.
        prompts: Token ids.
        submit: Makes the engine's request of a prompt, given its index and the function that receives its steps.
        stream: Whether the answer is streamed.
        include_usage: Whether a stream ends with the token counts.
    """

    format: ResponseFormat
    prompts: Sequence[Sequence[int]]
    submit: Callable[[int, Callable[[Step], None]], engine.Request]
    stream: bool
    include_usage: bool

    @property
    def prompt_tokens(self) -> int:
        """Number of tokens of all prompts."""
        return sum(map(len, self.prompts))


def completion_prompts(run: ServedRun, prompt: Any) -> list[list[int]]:
    """Return the token ids of a completion's prompts."""
    several = isinstance(prompt, list) and (not prompt or not isinstance(prompt[0], int))
    given = prompt if several else [prompt]
    vocabulary = run.run.model().config.get_text_config(decoder=True).vocab_size
    prompts: list[list[int]] = []
    for each in given:
        if isinstance(each, str):
            # as the run was evaluated, but without a template: the text is the user's own
            prompts.append(_encode(run, each, param="prompt"))
        elif all(0 <= token < vocabulary for token in each):
            prompts.append(list(each))
        else:
            raise ApiError(400, f"prompt: token ids must be from 0 to {vocabulary - 1}", param="prompt")
    if not prompts or not all(prompts):
        raise ApiError(400, "prompt: is empty", param="prompt")
    return prompts


def chat_prompt(run: ServedRun, body: ChatBody) -> list[int]:
    """Return the token ids of a conversation, in the format that the run was evaluated in.

    Without a chat template the messages are joined by line breaks; one user message is the prompt of a test.
    """
    if run.chat:
        return list(encode_chat(run.run.tokenizer, [[(m.role, m.text) for m in body.messages]])[0])
    text = "\n".join(message.text for message in body.messages)
    if not text.strip():
        raise ApiError(400, "messages: are empty", param="messages")
    return _encode(run, text, param="messages")


def _encode(run: ServedRun, text: str, *, param: str) -> list[int]:
    """Return the token ids of a text; raise ApiError if the vocabulary lacks a word."""
    tokenizer = run.run.tokenizer
    (ids,) = encode_prompts(tokenizer, [text], chat=False)
    # in some tokenizers one special token has several roles, and may begin every text
    unknown = {tokenizer.unk_token_id} - {None, tokenizer.bos_token_id, tokenizer.eos_token_id}
    if not unknown.isdisjoint(ids):
        raise ApiError(400, f"{param}: has words that are not in the backbone's vocabulary", param=param)
    return list(ids)


async def prepare(
    runner: Engine,
    run: ServedRun,
    card: ModelCard,
    body: CompletionBody | ChatBody,
    prompts: list[list[int]],
    *,
    chat: bool,
) -> Generation:
    """Check the prompts, and build the model if it is a baseline's."""
    tokenizer = run.run.tokenizer
    param = "messages" if chat else "prompt"
    try:
        # a baseline is built on its first use
        model = await asyncio.wrap_future(runner.call(partial(run.model, card)))
    except QueueFullError:
        raise ApiError(503, "the server is shutting down") from None
    limit = body.max_tokens
    if isinstance(body, ChatBody):
        limit = body.max_completion_tokens or body.max_tokens
        logprobs = (body.top_logprobs or 0) if body.logprobs else None
    else:
        logprobs = body.logprobs
    max_tokens = _room(model, prompts, limit, default=_CHAT_TOKENS if chat else _COMPLETION_TOKENS, param=param)
    sampling = Sampling(
        temperature=1.0 if body.temperature is None else body.temperature,
        top_p=1.0 if body.top_p is None else body.top_p,
        seed=body.seed,
    )
    details = body.imsm.top if body.imsm.details else None

    def submit(index: int, report: Callable[[Step], None]) -> engine.Request:
        seed = None if sampling.seed is None else sampling.seed + index
        return engine.Request(
            model=model,
            prompt=prompts[index],
            max_tokens=max_tokens,
            report=report,
            sampling=replace(sampling, seed=seed),
            stop=body.stop_strings,
            logprobs=logprobs,
            details=details,
        )

    return Generation(
        format=ResponseFormat(
            chat=chat,
            model=card.id,
            fingerprint=card.fingerprint,
            tokenizer=tokenizer,
            logprobs=logprobs is not None,
            details=details is not None,
        ),
        prompts=prompts,
        submit=submit,
        stream=bool(body.stream),
        include_usage=body.stream_options is not None and body.stream_options.include_usage,
    )


def _room(model: Model, prompts: Sequence[Sequence[int]], limit: int | None, *, default: int, param: str) -> int:
    """Return the number of tokens to generate at most; raise ApiError if they do not fit into the positions."""
    positions = model.model.max_positions
    longest = max(map(len, prompts))
    if positions is None:
        return limit or default
    if longest + (limit or 1) > positions:
        raise ApiError(
            400,
            f"{param}: {longest} tokens and {limit or 1} to generate exceed the {positions} positions of the backbone",
            param=param,
            code="context_length_exceeded",
        )
    return limit or min(default, positions - longest)
