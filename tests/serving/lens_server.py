"""A server with the HTTP interface of `imsm.serving.app` whose models answer with fixed tokens."""

from __future__ import annotations

import contextlib
import json
import math
import threading
from collections.abc import Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import imsm.serving
from imsm.serving.run_views import list_items, list_runs

FILES = {"/": "index.html", "/lens.css": "lens.css", "/lens.js": "lens.js"}
TYPES = {".html": "text/html; charset=utf-8", ".css": "text/css", ".js": "text/javascript"}
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
BASELINES = [
    {"name": "logit_mix", "symbol": "lambda", "low": -1.0, "high": 1.0, "grid": [0.25, 0.5, 0.75], "meaning": "mix"},
    {"name": "adapter_scale", "symbol": "alpha", "low": 0.0, "high": 2.0, "grid": [], "meaning": "scale"},
]
MARKUP = '<img src=x onerror="window.hacked=1"><script>window.hacked=1</script>&lt;b&gt;'
ANSWER = ("The", " answer", " is", "\n", MARKUP, " 7", "")
WINNERS = ("both", "original", "tuned", "neither")
GATED = ("interwoven", "constant_gate", "logit_mix")


def fingerprint(model: str) -> str:
    """A hexadecimal text that differs between models."""
    return (model.encode().hex()[::-1] + "0" * 64)[:64]


def token(index: int, text: str, *, gated: bool) -> dict[str, Any]:
    """The details of one token; the probabilities of the candidates are 1/2, 1/4, ..."""
    top = [
        {"text": f"{text}{rank or ''}", "id": 10 * rank + index, "logprob": math.log(0.5 ** (rank + 1))}
        for rank in range(5)
    ]
    gate = {"gate": index / 10, "gate_std": 0.05} if gated else {"gate": None, "gate_std": None}
    winner = WINNERS[index % len(WINNERS)]
    return {
        "text": text,
        "id": index,
        **gate,
        "kl": 0.25 * index,
        "winner": winner,
        "original": top,
        "tuned": top[::-1],
    }


class LensServer(ThreadingHTTPServer):
    """Serves runs; the prompt selects how a model answers.

    ``hold``: after the first token the models wait for `release`. ``busy``: 429. ``broken``: an error within the
    stream. ``cut``: the connection ends early.
    """

    daemon_threads = True

    def __init__(self, folders: Sequence[Path], *, key: str | None = None) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.folders = {folder.name: folder for folder in folders}
        self.key = key
        self.release = threading.Event()
        self.disconnected = threading.Event()
        self.asked: list[dict[str, Any]] = []
        self.answered_by: dict[str, str] = {}  # id of the model that answers instead of another
        self.problems: list[str] = []

    @property
    def url(self) -> str:
        """Address of the page."""
        return f"http://127.0.0.1:{self.server_address[1]}/"


class _Handler(BaseHTTPRequestHandler):
    server: LensServer

    def log_message(self, *_: Any) -> None:
        """Print nothing."""

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        if url.path in FILES:
            path = Path(imsm.serving.__file__).parent / "lens" / FILES[url.path]
            return self._send(path.read_bytes(), TYPES[path.suffix])
        if not self._authorized():
            return None
        if url.path == "/v1/models":
            models = [f"{card['run']}:{stream}" for card in self._cards() for stream in card["streams"]]
            data = [{"id": model, "imsm": {"fingerprint": fingerprint(model)}} for model in models]
            return self._json({"object": "list", "data": data})
        if url.path == "/api/runs":
            return self._json([{**card, "imsm": {"baselines": BASELINES}} for card in self._cards()])
        if url.path == "/api/items":
            query = {name: values[0] for name, values in parse_qs(url.query).items()}
            folder = self.server.folders[query["run"]]
            filters = {name: query.get(name) for name in ("task", "change", "search")}
            offset, limit = int(query.get("offset", 0)), int(query.get("limit", 50))
            return self._json(list_items(folder, **filters, offset=offset, limit=limit))
        self.server.problems.append(self.path)
        return self._json({"error": {"message": "not found"}}, 404)

    def do_POST(self) -> None:
        if not self._authorized():
            return
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.asked.append(request)
        prompt = request["messages"][0]["content"]
        if prompt == "busy":
            self._json({"error": {"message": "the queue is full <b>now</b>", "code": "queue_full"}}, 429)
            return
        self._head(200, "text/event-stream")
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self._answer(request, prompt)

    def _answer(self, request: dict[str, Any], prompt: str) -> None:
        model = self.server.answered_by.get(request["model"], request["model"])
        gated = model.split(":")[1] in GATED
        for index, text in enumerate(ANSWER):
            if index == 1 and prompt == "hold":
                self._wait()
            if index == 2 and prompt == "broken":
                self._event({"error": {"message": "the engine <i>failed</i>"}})
                return
            if index == 2 and prompt == "cut":
                return
            choice = {"index": 0, "delta": {"content": text}, "imsm": {"tokens": [token(index, text, gated=gated)]}}
            self._event({"model": model, "system_fingerprint": fingerprint(model), "choices": [choice]})
        self.wfile.write(b"data: [DONE]\n\n")

    def _wait(self) -> None:
        """Send comments until released, so that a client that left is noticed."""
        try:
            while not self.server.release.wait(0.05):
                self.wfile.write(b": waiting\n\n")
        except OSError:
            self.server.disconnected.set()
            raise

    def _event(self, value: dict[str, Any]) -> None:
        self.wfile.write(f"data: {json.dumps(value)}\r\n\r\n".encode())
        self.wfile.flush()

    def _authorized(self) -> bool:
        if self.server.key is None or self.headers.get("Authorization") == f"Bearer {self.server.key}":
            return True
        self._json({"error": {"message": "a key is needed"}}, 401)
        return False

    def _cards(self) -> list[dict[str, Any]]:
        return list_runs(list(self.server.folders.values()))

    def _json(self, value: Any, status: int = 200) -> None:
        self._send(json.dumps(value).encode(), "application/json", status)

    def _send(self, content: bytes, kind: str, status: int = 200) -> None:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # the page has left
            self._head(status, kind)
            self.wfile.write(content)

    def _head(self, status: int, kind: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Security-Policy", POLICY)
        self.end_headers()


@contextlib.contextmanager
def serve(folders: Sequence[Path], *, key: str | None = None) -> Iterator[LensServer]:
    """Run a server in a thread while the context is open."""
    with LensServer(folders, key=key) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.release.set()
            server.shutdown()
