"""Submit the requests of a generation, and return or stream their answers."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from functools import partial
from typing import Any

from fastapi import Request
from sse_starlette import EventSourceResponse

from imsm.serving import engine
from imsm.serving.engine import Engine, QueueFullError, Step
from imsm.serving.preparation import Generation
from imsm.serving.protocol import Answer, ApiError, error_object


async def respond(request: Request, runner: Engine, generation: Generation) -> Any:
    """Submit the answers; return them, or stream them."""
    steps: asyncio.Queue[tuple[int, Step]] = asyncio.Queue()
    loop = asyncio.get_running_loop()

    def report(index: int, step: Step) -> None:
        # called in the engine's thread; after the loop ended nobody waits for the step
        if not loop.is_closed():
            loop.call_soon_threadsafe(steps.put_nowait, (index, step))

    requests = [generation.submit(index, partial(report, index)) for index in range(len(generation.prompts))]
    try:
        for each in requests:
            runner.submit(each)
    except QueueFullError:
        _cancel(requests)
        raise ApiError(429, f"{runner.waiting} requests are waiting; try again later", code="queue_full") from None
    if generation.stream:
        return EventSourceResponse(_events(generation, requests, steps), sep="\n")
    work = asyncio.ensure_future(_collect(requests, steps))
    left = asyncio.ensure_future(_until_left(request))
    try:
        await asyncio.wait({work, left}, return_when=asyncio.FIRST_COMPLETED)
        if not work.done():
            raise ApiError(499, "the client left")
        return generation.format.response(work.result(), prompt_tokens=generation.prompt_tokens)
    finally:
        _cancel(requests)
        work.cancel()
        left.cancel()


async def _collect(requests: Sequence[engine.Request], steps: asyncio.Queue[tuple[int, Step]]) -> list[Answer]:
    """Return the complete answers; raise ApiError if one of them fails."""
    answers = [Answer() for _ in requests]
    while any(answer.finish_reason is None for answer in answers):
        index, step = await steps.get()
        if step.error is not None:
            raise ApiError(503, step.error)
        answers[index].steps.append(step)
    return answers


async def _until_left(request: Request) -> None:
    """Wait until the client closes the connection; the body has been read."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _events(
    generation: Generation, requests: Sequence[engine.Request], steps: asyncio.Queue[tuple[int, Step]]
) -> AsyncIterator[dict[str, str]]:
    """Yield the events of a stream; closing the iterator, as a disconnect does, ends the answers."""
    answers = [Answer() for _ in requests]
    try:
        while any(answer.finish_reason is None for answer in answers):
            index, step = await steps.get()
            if step.error is not None:
                yield {"data": json.dumps(error_object(step.error, kind="server_error"))}
                return
            chunk = generation.format.chunk(index, step, first=not answers[index].steps)
            answers[index].steps.append(step)
            yield {"data": json.dumps(chunk)}
        if generation.include_usage:
            yield {"data": json.dumps(generation.format.usage_chunk(answers, prompt_tokens=generation.prompt_tokens))}
        yield {"data": "[DONE]"}
    finally:
        _cancel(requests)


def _cancel(requests: Sequence[engine.Request]) -> None:
    for request in requests:
        request.cancelled = True
