"""How a process that took part in collectives ends."""

from __future__ import annotations

import os
import sys
from typing import NoReturn


def exit_process(code: int) -> NoReturn:
    """End this process with an exit code, its output written.

    After collectives it ends at once: threads of torch and DeepSpeed do not always survive an
    orderly end, and one that had done all its work would be reported as killed by SIGABRT.
    """
    torch = sys.modules.get("torch")
    group = None if torch is None else torch.distributed
    if group is not None and group.is_available() and group.is_initialized():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)
