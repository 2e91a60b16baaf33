"""One process of `test_zero.py`: trains tiny models under a ZeRO stage, writes what came out.

    python -m tests.training.zero_worker RANK SIZE PORT OUTPUT STAGE OFFLOAD
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch.distributed import TCPStore

from imsm.adapters.adapter import Adapter
from imsm.processes.collectives import start_collectives
from imsm.processes.world import World
from imsm.training.engine import Engine
from imsm.training.keep import Keeper
from imsm.training.local import LocalEngine
from imsm.training.loop import Batching, train
from imsm.training.optimizer import ELEMENTWISE, build_optimizer, build_schedule
from imsm.training.resume import checkpoint_to_resume
from imsm.training.zero import ZeroEngine
from imsm.training.zero_settings import zero_settings
from tests.adapters.moe import tiny_loramoe
from tests.siamese.tiny import ADAPTERS, QUERY_GATE, tiny_siamese
from tests.training.test_loop import IDENTITY, items

METHODS = ("lora", "ia3", "adalora", "dora", "loramoe")
BATCHING = Batching(epochs=2, batch_size=5, micro_batch_size=2, seed=7)
EXAMPLES = 12


def build(method: str, *, interwoven: bool, optimizer: str = "adamw") -> dict[str, Any]:
    """A tiny model with what trains it."""
    adapter: Adapter = {**ADAPTERS, "loramoe": lambda: tiny_loramoe(blc_weight=0.0)}[method]()
    model = tiny_siamese("llama", adapter, gate=QUERY_GATE if interwoven else None)
    built = build_optimizer(
        model, name=optimizer, learning_rate=1e-2, gate_learning_rate=2e-2, weight_decay=0.01
    )
    steps = BATCHING.steps(EXAMPLES)
    schedule = build_schedule(built, name="cosine", warmup_ratio=0.1, steps=steps)
    hooks = adapter.hooks(model.adapted, steps) if adapter.hooks else None
    return {"model": model, "optimizer": built, "schedule": schedule, "hooks": hooks}


def local_engine(parts: dict[str, Any]) -> LocalEngine:
    return LocalEngine(
        parts["model"],
        optimizer=parts["optimizer"],
        schedule=parts["schedule"],
        clip_norm=0.5,
        device=torch.device("cpu"),
    )


def zero_engine(
    parts: dict[str, Any], *, stage: int, offload: bool, optimizer: str, world: World
) -> ZeroEngine:
    sizes = [p.numel() for p in parts["model"].parameters() if p.requires_grad]
    settings = zero_settings(
        stage=stage,
        offload=offload,
        pinned=False,
        micro_batch_size=2,
        accumulation=2,
        clip_norm=0.5,
        largest=max(sizes),
        trainable=sum(sizes),
        bucket_elements=10_000,
        prefetch_elements=10_000,
        live_elements=10_000,
    )
    return ZeroEngine(
        parts["model"],
        optimizer=parts["optimizer"],
        elementwise=optimizer in ELEMENTWISE,
        schedule=parts["schedule"],
        clip_norm=0.5,
        settings=settings,
        device=torch.device("cpu"),
        world=world,
    )


class Stop(Exception):
    """Raised after a step, in every process."""


def run(
    parts: dict[str, Any], engine: Engine, folder: Path, *, stop_after: int | None = None
) -> dict[str, Any]:
    """Train; returns what was logged and where it ended."""
    logged: list[dict[str, float]] = []

    def log(step: int, values: dict[str, float]) -> None:
        logged.append(values)

    start = engine.world.first(
        lambda: str(checkpoint_to_resume("auto", folder, identity=IDENTITY) or "")
    )
    keeper = Keeper(
        folder=folder,
        identity=IDENTITY,
        engine=engine,
        hooks=parts["hooks"],
        minutes=60,
        steps=stop_after,
        start=Path(start) if start else None,
    )
    if stop_after is not None:
        save = keeper.save

        def save_and_stop(*arguments: Any) -> None:
            save(*arguments)
            raise Stop

        keeper.save = save_and_stop  # type: ignore[method-assign]
    try:
        train(
            parts["model"],
            items(EXAMPLES),
            engine=engine,
            hooks=parts["hooks"],
            batching=BATCHING,
            keeper=keeper,
            pad_id=0,
            log=log,
            validation=items(EXAMPLES)[:3],
        )
    except Stop:
        pass
    return {"logged": logged, "values": engine.trainables()}


def arms() -> list[tuple[str, bool, str]]:
    """Method, whether it is interwoven, optimizer."""
    found = [(method, True, "adamw") for method in METHODS]
    found += [("lora", False, "adamw"), ("adalora", False, "adamw"), ("ia3", True, "adafactor")]
    return [*found, ("lora", True, "adafactor")]


def name_of(arm: tuple[str, bool, str]) -> str:
    method, interwoven, optimizer = arm
    return f"{method}-{'imsm' if interwoven else 'peft'}-{optimizer}"


def main() -> None:
    rank, size, port, output, stage, offload = sys.argv[1:]
    store = TCPStore("127.0.0.1", int(port), is_master=False)
    world = World(rank=int(rank), size=int(size), store=store)
    start_collectives(world, device=torch.device("cpu"), timeout_minutes=1)
    folder = Path(output)
    for arm in arms():
        method, interwoven, optimizer = arm

        def go(place: Path, stop_after: int | None = None) -> dict[str, Any]:
            parts = build(method, interwoven=interwoven, optimizer=optimizer)
            engine = zero_engine(
                parts, stage=int(stage), offload=offload == "True", optimizer=optimizer,
                world=world,
            )  # fmt: skip
            result = run(parts, engine, place, stop_after=stop_after)
            engine.close()
            return result

        found = {"whole": go(folder / name_of(arm) / "whole")}
        if method in ("lora", "adalora"):
            parted = folder / name_of(arm) / "parted"
            go(parted, stop_after=3)
            if world.leads:  # another engine will go on from it too
                import shutil

                shutil.copytree(parted, folder / name_of(arm) / "for-local")
            world.gather("")
            found["parted"] = go(parted)
            local = folder / name_of(arm) / "by-local"
            if local.is_dir():
                found["from-local"] = go(local)
        if world.leads:
            for what, result in found.items():
                base = folder / f"{name_of(arm)}-{what}"
                base.with_suffix(".json").write_text(json.dumps(result["logged"]))
                save_file(result["values"], base.with_suffix(".safetensors"))


if __name__ == "__main__":
    main()
