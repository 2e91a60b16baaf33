"""The HTTP server: OpenAI's API, the lens page and the data of its tabs."""

from __future__ import annotations

import asyncio
import os
import secrets
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from imsm.serving import run_views
from imsm.serving.answering import respond
from imsm.serving.engine import Engine
from imsm.serving.models import ModelCard, ServedModels, ServedRun
from imsm.serving.preparation import chat_prompt, completion_prompts, prepare
from imsm.serving.protocol import ApiError, ChatBody, CompletionBody, error_object
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
        prompts = await asyncio.to_thread(completion_prompts, run, body.prompt)
        generation = await prepare(runner, run, card, body, prompts, chat=False)
        return await respond(request, runner, generation)

    @app.post("/v1/chat/completions")
    async def chat(body: ChatBody, request: Request) -> Any:
        run, card = _find(models, body.model)
        prompts = [await asyncio.to_thread(chat_prompt, run, body)]
        generation = await prepare(runner, run, card, body, prompts, chat=True)
        return await respond(request, runner, generation)


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
        return view(folders[run], offset=max(offset, 0), limit=max(limit, 1))


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
