"""A session of the GPU's rows with tiny shapes on the CPU."""

from __future__ import annotations

from dataclasses import replace

import pytest

from scripts.bench.__main__ import make_setup
from scripts.bench.gpu.session import TINY_SHAPE, Session


@pytest.fixture(scope="session")
def session() -> Session:
    setup = make_setup("llama3", device="cpu", dtype="bfloat16", random=True, batch=16)
    assert setup.shape is not None
    return Session(replace(setup, shape={**setup.shape, **TINY_SHAPE}), tiny=True, rounds=1)
