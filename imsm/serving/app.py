"""The HTTP server: OpenAI's API, the lens page and the data of its tabs."""

from __future__ import annotations

import asyncio
import json
import os
import secrets
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse
from sse_starlette import EventSourceResponse
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from imsm.data.chat_template import encode_chat
from imsm.data.tokenization import encode_prompts
from imsm.serving import engine, run_views
from imsm.serving.engine import Engine, Model, QueueFullError, Step
from imsm.serving.models import ModelCard, ServedModels, ServedRun
from imsm.serving.protocol import Answer, ChatBody, CompletionBody, ResponseFormat, error_object
from imsm.serving.sampling import Sampling
from imsm.utils.errors import UserError

API_KEY = "IMSM_API_KEY"
"""Environment variable with the key that requests must send."""
MAX_BODY_BYTES = 4 * 2**20
LENS = Path(__file__).parent / "lens"
_CONTENT_SECURITY_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_HEADERS = {
    "Content-Security-Policy": _CONTENT_SECURITY_POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}
_COMPLETION_TOKENS, _CHAT_TOKENS = 16, 256
"""Tokens to generate at most, without `max_tokens`."""


class ApiError(Exception):
    """An answer of the API other than 200."""

    def __init__(self, status: int, message: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        kind = {401: "authentication_error", 429: "rate_limit_error", 503: "server_error"}.get(
            status, "invalid_request_error"
        )
        self.status = status
        self.content = error_object(message, kind=kind, param=param, code=code)


@dataclass(frozen=True)
class _Generation:
    """The prompts of a request, and how to answer."""

    format: ResponseFormat
    prompts: Sequence[Sequence[int]]
    submit: Callable[[int, Callable[[Step], None]], engine.Request]
    stream: bool
    include_usage: bool

    @property
    def prompt_tokens(self) -> int:
        return sum(map(len, self.prompts))


def create_app(models: ServedModels, runner: Engine, *, hosts: Sequence[str]) -> FastAPI:
    """Return the application; ``runner`` is started and closed with it.

    ``hosts`` are the accepted host names: another site's page cannot reach a local server by DNS rebinding.
    """

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        with runner:
            yield

    app = FastAPI(title="imsm", lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None)
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=list(hosts))
    app.add_middleware(_Guard)
    _add_error_handlers(app)
    _add_api(app, models, runner)
    _add_pages(app, models)
    return app


class _Guard:
    """Check the key and the size of a request, and add the security headers.

    Plain ASGI: Starlette's HTTP middleware hides from a stream that its client has left.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(_HEADERS)
            await send(message)

        app = _rejection(Request(scope)) or self.app
        await app(scope, receive, send_with_headers)


def _rejection(request: Request) -> Response | None:
    key = os.environ.get(API_KEY)
    if key and request.url.path.startswith(("/v1/", "/api/")):
        given = request.headers.get("authorization", "")
        if not secrets.compare_digest(given.encode(), f"Bearer {key}".encode()):
            error = ApiError(401, f"Authorization: must be Bearer and the key in {API_KEY}", code="invalid_api_key")
            return JSONResponse(error.content, error.status)
    length = request.headers.get("content-length", "0")
    if "transfer-encoding" in request.headers or not length.isdecimal() or int(length) > MAX_BODY_BYTES:
        error = ApiError(413, f"the body must have a Content-Length of at most {MAX_BODY_BYTES} bytes")
        return JSONResponse(error.content, error.status)
    return None


def _add_error_handlers(app: FastAPI) -> None:
    @app.exception_handler(ApiError)
    async def api_error(_: Request, error: ApiError) -> Response:
        headers = {"Retry-After": "1"} if error.status == 429 else None
        return JSONResponse(error.content, error.status, headers=headers)

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        param = ".".join(str(part) for part in first["loc"] if part != "body") or None
        return JSONResponse(error_object(f"{param or 'body'}: {first['msg']}", param=param), 400)

    @app.exception_handler(HTTPException)
    async def http_error(_: Request, error: HTTPException) -> Response:
        return JSONResponse(error_object(str(error.detail)), error.status_code)

    @app.exception_handler(Exception)
    async def unexpected(_: Request, error: Exception) -> Response:
        # Starlette prints the traceback to standard error
        return JSONResponse(error_object(type(error).__name__, kind="server_error"), 500)

    @app.exception_handler(UserError)
    async def user_error(_: Request, error: UserError) -> Response:
        return JSONResponse(error_object(str(error)), 400)


def _add_api(app: FastAPI, models: ServedModels, runner: Engine) -> None:
    @app.get("/v1/models")
    async def list_models() -> dict[str, Any]:
        cards = [(run, card) for run in models.runs.values() for card in run.cards()]
        return {"object": "list", "data": [_model_object(run, card) for run, card in cards]}

    @app.get("/v1/models/{name:path}")
    async def get_model(name: str) -> dict[str, Any]:
        return _model_object(*_find(models, name))

    @app.post("/v1/completions")
    async def completions(body: CompletionBody, request: Request) -> Any:
        run, card = _find(models, body.model)
        # in a thread: tokenizing a long text takes seconds
        prompts = await asyncio.to_thread(_completion_prompts, run, body.prompt)
        generation = await _prepare(runner, run, card, body, prompts, chat=False)
        return await _respond(request, runner, generation)

    @app.post("/v1/chat/completions")
    async def chat(body: ChatBody, request: Request) -> Any:
        run, card = _find(models, body.model)
        prompts = [await asyncio.to_thread(_chat_prompt, run, body)]
        generation = await _prepare(runner, run, card, body, prompts, chat=True)
        return await _respond(request, runner, generation)


def _add_pages(app: FastAPI, models: ServedModels) -> None:
    folders = {name: run.run.folder for name, run in models.runs.items()}

    @app.get("/")
    async def index() -> FileResponse:
        return FileResponse(LENS / "index.html")

    @app.get("/{name}")
    async def asset(name: str) -> FileResponse:
        if name not in ("lens.css", "lens.js"):
            raise HTTPException(404, "not found")
        return FileResponse(LENS / name)

    @app.get("/api/runs")
    def runs() -> list[dict[str, Any]]:
        cards = run_views.list_runs(list(folders.values()))
        for card, run in zip(cards, models.runs.values(), strict=True):
            card["imsm"] = {"default": run.default_id, "baselines": run.baselines()}
        return cards

    @app.get("/api/items")
    def items(
        run: str,
        task: str | None = None,
        change: str | None = None,
        search: str | None = None,
        offset: int = 0,
        limit: int = 50,
    ) -> dict[str, Any]:
        if run not in folders:
            raise ApiError(404, f"run={run[:200]}: not served; choose from {', '.join(folders)}", param="run")
        view = partial(run_views.list_items, task=task or None, change=change or None, search=search or None)
        return view(folders[run], offset=max(offset, 0), limit=min(max(limit, 1), 500))


def _find(models: ServedModels, name: str) -> tuple[ServedRun, ModelCard]:
    try:
        return models.card(name)
    except UserError as error:
        raise ApiError(404, str(error), param="model", code="model_not_found") from error


def _model_object(run: ServedRun, card: ModelCard) -> dict[str, Any]:
    details = {key: value for key, value in asdict(card).items() if key != "id"}
    created = int(run.run.folder.stat().st_mtime)
    return {
        "id": card.id,
        "object": "model",
        "created": created,
        "owned_by": "imsm",
        "imsm": {**details, "backbone": run.backbone},
    }


def _completion_prompts(run: ServedRun, prompt: Any) -> list[list[int]]:
    """Return the token ids of a completion's prompts."""
    several = isinstance(prompt, list) and (not prompt or not isinstance(prompt[0], int))
    given = prompt if several else [prompt]
    vocabulary = run.run.model().config.get_text_config(decoder=True).vocab_size
    prompts: list[list[int]] = []
    for each in given:
        if isinstance(each, str):
            # as the run was evaluated, but without a template: the text is the user's own
            prompts.append(list(encode_prompts(run.run.tokenizer, [each], chat=False)[0]))
        elif all(0 <= token < vocabulary for token in each):
            prompts.append(list(each))
        else:
            raise ApiError(400, f"prompt: token ids must be from 0 to {vocabulary - 1}", param="prompt")
    if not prompts or not all(prompts):
        raise ApiError(400, "prompt: is empty", param="prompt")
    return prompts


def _chat_prompt(run: ServedRun, body: ChatBody) -> list[int]:
    """Return the token ids of a conversation, in the format that the run was evaluated in.

    Without a chat template the messages are joined by line breaks; one user message is the prompt of a test.
    """
    if run.chat:
        return list(encode_chat(run.run.tokenizer, [[(m.role, m.text) for m in body.messages]])[0])
    text = "\n".join(message.text for message in body.messages)
    if not text.strip():
        raise ApiError(400, "messages: are empty", param="messages")
    return list(encode_prompts(run.run.tokenizer, [text], chat=False)[0])


async def _prepare(
    runner: Engine,
    run: ServedRun,
    card: ModelCard,
    body: CompletionBody | ChatBody,
    prompts: list[list[int]],
    *,
    chat: bool,
) -> _Generation:
    """Check the prompts, and build the model if it is a baseline's."""
    tokenizer = run.run.tokenizer
    param = "messages" if chat else "prompt"
    if tokenizer.unk_token_id is not None and any(tokenizer.unk_token_id in prompt for prompt in prompts):
        raise ApiError(400, f"{param}: has words that are not in the backbone's vocabulary", param=param)
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

    return _Generation(
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


async def _respond(request: Request, runner: Engine, generation: _Generation) -> Any:
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
    generation: _Generation, requests: Sequence[engine.Request], steps: asyncio.Queue[tuple[int, Step]]
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
