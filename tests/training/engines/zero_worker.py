"""One process of `test_zero.py`: trains tiny models under a ZeRO stage, writes what came out.

python -m tests.training.engines.zero_worker RANK SIZE PORT OUTPUT STAGE OFFLOAD
"""

from __future__ import annotations

import json
import shutil
import sys
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import save_file
from torch.distributed import TCPStore

from imsm.distributed.context import DistributedContext
from imsm.distributed.process_group import start_collectives
from imsm.distributed.supervisor import exit_process
from imsm.models.adapters.base import AdapterSpec
from imsm.models.siamese.hidden_state_cache import compute_in_memory
from imsm.models.siamese.kl import KLRegularizer
from imsm.training.checkpoint_manager import CheckpointManager, checkpoint_to_resume
from imsm.training.engines.base import Engine
from imsm.training.engines.deepspeed import DeepSpeedEngine
from imsm.training.engines.deepspeed_config import deepspeed_config
from imsm.training.engines.single_device import SingleDeviceEngine
from imsm.training.optimizer import ELEMENTWISE, build_optimizer, build_schedule
from imsm.training.trainer import BatchPlan, train
from tests.models.adapters.moe import tiny_loramoe
from tests.models.siamese.tiny import ADAPTERS, QUERY_GATE, tiny_siamese
from tests.training.test_trainer import IDENTITY, items

BATCHING = BatchPlan(epochs=2, batch_size=5, micro_batch_size=2, seed=7)
EXAMPLES = 12


class Arm(NamedTuple):
    method: str
    interwoven: bool = True
    optimizer: str = "adamw"
    dtype: torch.dtype = torch.float32
    checkpointing: bool = False
    kl: float | None = None
    bank: bool = False


def arms(*, few: bool = False) -> list[Arm]:
    """What is trained; ``few`` of it where a stage is much like another."""
    found = [Arm("lora"), Arm("adalora"), Arm("ia3", optimizer="adafactor")]
    if few:
        return found
    found += [Arm("ia3"), Arm("dora"), Arm("loramoe"), Arm("lora", optimizer="adafactor")]
    found += [Arm("lora", interwoven=False), Arm("adalora", interwoven=False)]
    found += [Arm("lora", checkpointing=True), Arm("dora", dtype=torch.bfloat16)]
    return [*found, Arm("lora", interwoven=False, kl=0.5), Arm("lora", bank=True)]


def name_of(arm: Arm) -> str:
    words = [arm.method, "imsm" if arm.interwoven else "peft", arm.optimizer]
    words += ["bf16"] if arm.dtype == torch.bfloat16 else []
    words += ["checkpointing"] if arm.checkpointing else []
    words += ["kl"] if arm.kl else []
    return "-".join([*words, "bank"] if arm.bank else words)


PARTED = ("lora-imsm-adamw", "adalora-imsm-adamw", "ia3-imsm-adafactor")
"""Those that are stopped and go on."""


def build(arm: Arm) -> dict[str, Any]:
    """A tiny model with what trains it."""
    adapter: AdapterSpec = {**ADAPTERS, "loramoe": lambda: tiny_loramoe(blc_weight=0.0)}[arm.method]()
    gate = QUERY_GATE if arm.interwoven else None
    model = tiny_siamese("llama", adapter, gate=gate, dtype=arm.dtype)
    if arm.kl is not None:
        model.kl_regularizer = KLRegularizer(weight=arm.kl)
    bank = compute_in_memory(model, items(EXAMPLES), pad_id=0) if arm.bank else None
    if arm.checkpointing:
        model.activation_checkpointing_enable()
    built = build_optimizer(model, name=arm.optimizer, learning_rate=1e-2, gate_learning_rate=2e-2, weight_decay=0.01)
    steps = BATCHING.steps(EXAMPLES)
    schedule = build_schedule(built, name="cosine", warmup_ratio=0.1, steps=steps)
    hooks = adapter.callbacks(model.adapted, steps) if adapter.callbacks else None
    parts = {"model": model, "optimizer": built, "schedule": schedule, "hooks": hooks}
    return parts | {"bank": bank}


def local_engine(parts: dict[str, Any]) -> SingleDeviceEngine:
    return SingleDeviceEngine(
        parts["model"],
        optimizer=parts["optimizer"],
        schedule=parts["schedule"],
        clip_norm=0.5,
        device=torch.device("cpu"),
    )


def zero_engine(
    parts: dict[str, Any], *, stage: int, offload: bool, optimizer: str, dist_context: DistributedContext
) -> DeepSpeedEngine:
    sizes = [p.numel() for p in parts["model"].parameters() if p.requires_grad]
    settings = deepspeed_config(
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
    return DeepSpeedEngine(
        parts["model"],
        optimizer=parts["optimizer"],
        elementwise=optimizer in ELEMENTWISE,
        schedule=parts["schedule"],
        clip_norm=0.5,
        settings=settings,
        device=torch.device("cpu"),
        dist_context=dist_context,
    )


class Stop(Exception):
    """Raised after a step, in every process."""


def run(parts: dict[str, Any], engine: Engine, folder: Path, *, stop_after: int | None = None) -> dict[str, Any]:
    """Train; returns what was logged and where it ended."""
    logged: list[dict[str, float]] = []

    def log(step: int, values: dict[str, float]) -> None:
        logged.append(values)

    start = engine.dist_context.run_on_main(lambda: str(checkpoint_to_resume("auto", folder, identity=IDENTITY) or ""))
    keeper = CheckpointManager(
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
    with suppress(Stop):
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
            bank=lambda: parts["bank"],
        )
    return {"logged": logged, "values": engine.trainable_state_dict()}


def main() -> None:
    rank, size, port, output, stage, offload = sys.argv[1:]
    store = TCPStore("127.0.0.1", int(port), is_master=False)
    dist_context = DistributedContext(rank=int(rank), size=int(size), store=store)
    start_collectives(dist_context, device=torch.device("cpu"), timeout_minutes=1)
    zero = partial(go, dist_context=dist_context, stage=int(stage), offload=offload == "True")
    for arm in arms(few=offload == "True"):
        folder = Path(output) / name_of(arm)
        found = {"whole": zero(arm, folder / "whole")}
        if name_of(arm) in PARTED:
            zero(arm, folder / "parted", stop_after=3)
            # another engine will go on from it too
            dist_context.run_on_main(lambda place=folder: keep_for_local(place))
            found["parted"] = zero(arm, folder / "parted")
            found["from-local"] = zero(arm, folder / "by-local")
        if dist_context.is_main:
            for what, result in found.items():
                base = folder.with_name(f"{name_of(arm)}-{what}")
                base.with_suffix(".json").write_text(json.dumps(result["logged"]))
                save_file(result["values"], base.with_suffix(".safetensors"))


def go(
    arm: Arm,
    place: Path,
    *,
    dist_context: DistributedContext,
    stage: int,
    offload: bool,
    stop_after: int | None = None,
) -> dict[str, Any]:
    """One training under ZeRO."""
    parts = build(arm)
    engine = zero_engine(parts, stage=stage, offload=offload, optimizer=arm.optimizer, dist_context=dist_context)
    result = run(parts, engine, place, stop_after=stop_after)
    engine.close()
    return result


def keep_for_local(folder: Path) -> None:
    shutil.copytree(folder / "parted", folder / "for-local")


if __name__ == "__main__":
    main()
    exit_process(0)
