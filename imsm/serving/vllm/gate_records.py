"""The gate of each generated token, recorded for requests with ``imsm_record`` and read once.

    LLM.collective_rpc("take_gates", args=(["name"],))          # [{"name": [[mean, std], ...]}], one entry per worker
    GET /v1/imsm/gates/name                                     # {"gates": [{"mean": 0.2, "std": 0.05}, ...]}

The route is an endpoint plugin of vLLM, which loads it only if the environment names it: VLLM_PLUGINS=imsm,imsm_gates.
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from fastapi import FastAPI, HTTPException

_MAX_RECORDS = 100_000
"""Number of answers whose gates are kept until they are read; the oldest is dropped first."""


class GateRecords:
    """Mean and standard deviation over the gate's dimensions, by name and number of the generated token."""

    def __init__(self) -> None:
        self._records: dict[str, dict[int, tuple[float, float]]] = {}

    def add(self, names: Sequence[str], numbers: Sequence[int], weights: torch.Tensor) -> None:
        """Record ``weights`` (n, C) of the tokens ``numbers`` of n answers; a token computed again is replaced."""
        means, deviations = weights.mean(dim=1).tolist(), weights.std(dim=1, correction=0).tolist()
        for name, number, mean, deviation in zip(names, numbers, means, deviations, strict=True):
            self._records.setdefault(name, {})[number] = (mean, deviation)
        while len(self._records) > _MAX_RECORDS:
            del self._records[next(iter(self._records))]

    def take(self, names: Sequence[str]) -> dict[str, list[list[float]]]:
        """Return and forget the records that exist."""
        taken = {name: self._records.pop(name) for name in names if name in self._records}
        return {name: [list(record[number]) for number in sorted(record)] for name, record in taken.items()}


class GateWorker:
    """Methods that vLLM adds to its worker class."""

    model_runner: Any

    def take_gates(self, names: list[str]) -> dict[str, list[list[float]]]:
        """Return and forget the gates recorded under ``names``."""
        found: dict[str, list[list[float]]] = self.model_runner.model.gate_records.take(names)
        return found


class GateEndpoint:
    """The route of the gates, an endpoint plugin of vLLM."""

    name: ClassVar[str] = "imsm_gates"
    required_tasks: ClassVar[tuple[str, ...]] = ("generate",)

    def __init__(self) -> None:
        self._engine: Any = None

    def attach_router(self, app: FastAPI) -> None:
        """Add the route."""

        async def gates(name: str) -> dict[str, Any]:
            found = await self._engine.collective_rpc("take_gates", args=([name],))
            if name not in found[0]:
                raise HTTPException(404, f"{name}: no gate is recorded under this name; send imsm_record")
            return {"gates": [{"mean": mean, "std": deviation} for mean, deviation in found[0][name]]}

        app.get("/v1/imsm/gates/{name}")(gates)

    async def init_state(self, engine_client: Any, state: Any, args: Namespace) -> None:
        """Keep the engine."""
        self._engine = engine_client
