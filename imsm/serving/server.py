"""Load the runs, bind the address and serve."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from pathlib import Path

import uvicorn

from imsm.serving.app import API_KEY, create_app
from imsm.serving.engine import Engine
from imsm.serving.models import ServedModels
from imsm.utils.errors import UserError

__all__ = ["API_KEY", "serve"]


def serve(folders: Sequence[Path], *, host: str, port: int, max_batch: int, max_waiting: int) -> None:
    """Serve runs until the process is interrupted.

    Raises:
        UserError: a run cannot be loaded, or the address cannot be bound.
    """
    # before the models are loaded, which takes longer
    listener = bind(host, port)
    with listener:
        models = ServedModels(folders)
        engine = Engine(max_batch=max_batch, max_waiting=max_waiting)
        address, port = listener.getsockname()[:2]
        names = {"127.0.0.1", "localhost", "[::1]", host, address}
        # any name on a public address: the key protects it
        hosts = ["*"] if address in ("0.0.0.0", "::") else sorted(names)
        app = create_app(models, engine, hosts=hosts)
        shown = f"[{address}]" if ":" in address else address
        print(f"imsm: serving {', '.join(models.names())}")
        print(f"imsm: page http://{shown}:{port}/, API http://{shown}:{port}/v1; Ctrl-C ends the server", flush=True)
        config = uvicorn.Config(app, log_level="warning", access_log=False, timeout_graceful_shutdown=5)
        uvicorn.Server(config).run(sockets=[listener])


def bind(host: str, port: int) -> socket.socket:
    """Return a listening socket; raise UserError if the address is not free. Port 0 is any free one."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family)
    except OSError as error:
        raise UserError(
            f"--host {host} --port {port}: cannot be bound ({error.strerror or error}); choose another port"
        ) from error
