"""`imsm serve RUN [RUN ...]`: serve finished runs with OpenAI's API, and a page to look at their answers.

Every run offers the original model, the tuned one, and both interwoven; RUN:BASELINE:VALUE is a baseline. Without
--host the server is reachable from this machine only. Requests must send the key in IMSM_API_KEY if it is set.
"""

from __future__ import annotations

import argparse
import os

from imsm.cli.common import add_config_dir, find_run, import_from_config_dir
from imsm.utils.errors import UserError

_LOOPBACK = ("127.0.0.1", "localhost", "::1")


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command."""
    parser = argparse.ArgumentParser(prog="imsm serve", description=__doc__)
    parser.add_argument("runs", nargs="+", metavar="RUN", help="folder or name of a finished run with an adapter")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (127.0.0.1)")
    parser.add_argument("--port", type=int, default=8000, help="port to listen on (8000); 0: any free one")
    parser.add_argument("--max-batch", type=int, default=32, metavar="N", help="answers in flight at once (32)")
    parser.add_argument("--max-queue", type=int, default=128, metavar="N", help="requests that may wait (128)")
    add_config_dir(parser)
    return parser


def main(arguments: list[str]) -> None:
    """Serve until the process is interrupted.

    Raises:
        UserError: a run is not finished, the packages of the extra `serve` are missing, or the address is not free.
    """
    options = parser().parse_args(arguments)
    for name in ("max_batch", "max_queue"):
        if getattr(options, name) < 1:
            raise UserError(f"--{name.replace('_', '-')} {getattr(options, name)}: must be at least 1")
    if not 0 <= options.port < 2**16:
        raise UserError(f"--port {options.port}: must be from 0 to 65535")
    try:
        from imsm.serving.server import API_KEY, serve
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] not in ("fastapi", "uvicorn", "sse_starlette", "starlette"):
            raise
        raise UserError(f"imsm serve: needs {error.name}; pip install 'imsm[serve]'") from error
    if options.host not in _LOOPBACK and not os.environ.get(API_KEY):
        raise UserError(
            f"--host {options.host}: would answer anybody who reaches this machine; set {API_KEY} to a key, or leave "
            "--host out"
        )
    import_from_config_dir(options.config_dir)
    serve(
        [find_run(name) for name in options.runs],
        host=options.host,
        port=options.port,
        max_batch=options.max_batch,
        max_waiting=options.max_queue,
    )
