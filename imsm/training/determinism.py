"""Deterministic algorithms for the gradient (`trainer.deterministic`).

With them, operations that add in an unspecified order on a GPU (atomics in attention's backward pass, scatter) use
another algorithm. torch then selects the deterministic backward of flash and memory-efficient attention, and excludes
cuDNN's attention, which has none.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from imsm.utils.errors import UserError

_ENVIRONMENT = {"CUBLAS_WORKSPACE_CONFIG": ":4096:8", "FLASH_ATTENTION_DETERMINISTIC": "1"}
"""Read by torch and cuBLAS, and by transformers for ``attn_implementation=flash_attention_2``."""


def set_deterministic_environment() -> None:
    """Set the environment variables that `deterministic_algorithms` needs, before CUDA starts.

    A value that is already set wins.
    """
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)


@contextmanager
def deterministic_algorithms(enabled: bool) -> Iterator[None]:
    """Use deterministic algorithms in the ``with`` block; without ``enabled``, change nothing.

    Raises:
        UserError: an operation has no deterministic implementation on this device.
    """
    if not enabled:
        yield
        return
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        yield
    except RuntimeError as error:
        # by message: torch has no class for it
        if "deterministic" not in str(error):
            raise
        raise UserError(
            f"trainer.deterministic=true: {str(error).splitlines()[0].split('. ')[0]}; omit it, or use another method"
        ) from error
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
