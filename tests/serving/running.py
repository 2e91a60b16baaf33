"""A real server of `imsm serve` in a thread of this process."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import uvicorn

from imsm.serving.app import create_app
from imsm.serving.engine import Engine
from imsm.serving.models import ServedModels
from imsm.serving.server import bind

HOSTS = ("127.0.0.1", "localhost")


@contextlib.contextmanager
def running(folders: Sequence[Path], *, max_batch: int = 4, max_waiting: int = 64) -> Iterator[tuple[str, Engine]]:
    """Serve the runs; yield the server's address and its engine."""
    engine = Engine(max_batch=max_batch, max_waiting=max_waiting)
    listener = bind("127.0.0.1", 0)
    app = create_app(ServedModels(folders), engine, hosts=HOSTS)
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", access_log=False))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}", engine
    finally:
        server.should_exit = True
        thread.join(timeout=30)
        listener.close()
