"""A hub of one's own on this machine: models and datasets of local folders over HTTP.

It speaks as much of the hub's protocol as its client and `datasets` ask, and counts what was asked.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass(kw_only=True)
class Hub:
    """What is served, and what was asked for.

    Attributes:
        models: folders by their ids.
        datasets: folders by their ids.
        url: where it listens.
        fetched: the paths of files whose content was sent.
    """

    models: dict[str, Path]
    datasets: dict[str, Path]
    url: str = ""
    fetched: list[str] = field(default_factory=list)

    def find(self, parts: list[str]) -> tuple[Path, list[str]] | None:
        """The folder of the repository that a path begins with, and the rest of the path."""
        kind = self.models
        if parts[:1] == ["datasets"]:
            parts, kind = parts[1:], self.datasets
        elif parts[:1] == ["models"]:
            parts = parts[1:]
        folder = kind.get("/".join(parts[:2]))
        return None if folder is None else (folder, parts[2:])


@contextmanager
def hub(*, models: dict[str, Path], datasets: dict[str, Path]) -> Iterator[Hub]:
    """Serve until the block ends."""
    served = Hub(models=models, datasets=datasets)

    class Handler(_Handler):
        hub = served

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    served.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield served
    finally:
        server.shutdown()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def do_POST(self) -> None:
        length = int(self.headers.get("Content-Length", 0))
        self._answer(body=True, asked=self.rfile.read(length))

    def log_message(self, *_: Any) -> None:
        """Say nothing."""

    def _answer(self, *, body: bool, asked: bytes = b"") -> None:
        url = urlsplit(self.path)
        parts = unquote(url.path).strip("/").split("/")
        api = parts[:1] == ["api"]
        found = self.hub.find(parts[1:] if api else parts)
        if found is None:
            self._send(404, b"{}", {"X-Error-Code": "RepoNotFound"}, body=body)
            return
        folder, rest = found
        if not api and rest[:1] == ["resolve"]:
            self._file(folder, "/".join(rest[2:]), body=body)
        elif rest[:1] == ["tree"]:
            recursive = parse_qs(url.query).get("recursive", ["false"])[0].lower() == "true"
            self._json(_entries(folder, "/".join(rest[2:]), recursive=recursive))
        elif rest[:1] == ["paths-info"]:
            wanted = [folder / name for name in _paths(asked)]
            self._json([_entry(folder, path) for path in wanted if path.exists()])
        else:
            names = [entry["path"] for entry in _entries(folder, "", recursive=True)]
            files = [name for name in names if (folder / name).is_file()]
            self._json(
                {
                    "_id": "1",
                    "id": "/".join(parts[-2:]),
                    "sha": COMMIT,
                    "private": False,
                    "gated": False,
                    "disabled": False,
                    "downloads": 0,
                    "likes": 0,
                    "tags": [],
                    "siblings": [{"rfilename": name} for name in files],
                }
            )

    def _file(self, folder: Path, name: str, *, body: bool) -> None:
        path = folder / name
        if not path.is_file():
            headers = {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT}
            self._send(404, b"", headers, body=body)
            return
        content = path.read_bytes()
        if body:
            self.hub.fetched.append(f"{folder.name}/{name}")
        tag = f'"{hashlib.sha1(content).hexdigest()}"'
        self._send(200, content, {"ETag": tag, "X-Repo-Commit": COMMIT}, body=body)

    def _json(self, value: Any) -> None:
        self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json"}, body=True)

    def _send(self, code: int, content: bytes, headers: dict[str, str], *, body: bool) -> None:
        self.send_response(code)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if body:
            self.wfile.write(content)


def _paths(asked: bytes) -> list[str]:
    """What a POST asks for, as JSON or as a form."""
    if asked.startswith(b"{"):
        return list(json.loads(asked)["paths"])
    return parse_qs(asked.decode()).get("paths", [])


def _entries(folder: Path, below: str, *, recursive: bool) -> list[dict[str, Any]]:
    paths = (folder / below).rglob("*") if recursive else (folder / below).glob("*")
    return [_entry(folder, path) for path in sorted(paths)]


def _entry(folder: Path, path: Path) -> dict[str, Any]:
    name = str(path.relative_to(folder))
    if path.is_dir():
        return {"type": "directory", "oid": "0" * 40, "size": 0, "path": name}
    content = path.read_bytes()
    oid = hashlib.sha1(content).hexdigest()
    return {"type": "file", "oid": oid, "size": len(content), "path": name}
