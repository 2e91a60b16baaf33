"""One process of `test_deepspeed.py`: trains tiny models under ZeRO stages and FSDP2 and writes the results.

python -m tests.training.engines.deepspeed_worker RANK WORLD_SIZE PORT OUTPUT
"""

from __future__ import annotations

import gc
import json
import shutil
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from tempfile import mkdtemp
from typing import Any, NamedTuple

import torch
from safetensors.torch import save_file
from torch.distributed import TCPStore
from transformers import PreTrainedModel
from transformers.utils import is_bitsandbytes_available

from imsm.data.batching import MicroBatching
from imsm.distributed.context import DistributedContext
from imsm.distributed.process_group import init_process_group
from imsm.distributed.supervisor import exit_process
from imsm.models.adapters.base import AdapterSpec
from imsm.models.backbones.loading import load_backbone
from imsm.models.backbones.sharded import load_sharded_backbone, sharded_layers
from imsm.models.siamese.hidden_state_cache import compute_in_memory
from imsm.models.siamese.kl import KLRegularizer
from imsm.training.checkpoint import TrainingState
from imsm.training.checkpoint_manager import CheckpointManager, checkpoint_to_resume
from imsm.training.engines.base import Engine
from imsm.training.engines.deepspeed import DeepSpeedEngine
from imsm.training.engines.deepspeed_config import deepspeed_config
from imsm.training.engines.fsdp2 import Fsdp2Engine
from imsm.training.engines.single_device import SingleDeviceEngine
from imsm.training.optimizer import ELEMENTWISE, build_lr_scheduler, build_optimizer
from imsm.training.rehearsal import Rehearsal
from imsm.training.trainer import BatchPlan, train
from tests.models.adapters.moe import tiny_loramoe
from tests.models.siamese.tiny import ADAPTERS, QUERY_GATE, tiny_backbone, tiny_siamese
from tests.training.tiny_run import IDENTITY, tiny_examples

CPU = torch.device("cpu")
BATCH_PLAN = BatchPlan(num_epochs=2, global_batch_size=5, micro_batching=MicroBatching(size=2), seed=7)
# two steps per epoch, the second one with fewer examples
EXAMPLES = tiny_examples(8)
STOP = 2
"""Steps of a run that is stopped, of the four of a complete one."""
# five texts for two processes: the second one has an empty micro-batch
REHEARSAL = Rehearsal(texts=tiny_examples(17)[12:], loss="kl", weight=0.5, batch_size=5, seed=7)


class Stage(NamedTuple):
    number: int
    offload: bool = False

    def __str__(self) -> str:
        return f"zero{self.number}{'_offload' if self.offload else ''}" if self.number else "fsdp2"


FSDP2 = Stage(0)
STAGES = [Stage(1), Stage(2), Stage(3), Stage(3, offload=True), FSDP2]


class Case(NamedTuple):
    method: str
    interwoven: bool = True
    optimizer: str = "adamw"
    dtype: torch.dtype = torch.float32
    checkpointing: bool = False
    kl: float | None = None
    cached: bool = False
    rehearsal: bool = False
    quantized: bool = False

    def __str__(self) -> str:
        words = [self.method, "imsm" if self.interwoven else "peft", self.optimizer]
        words += ["bf16"] if self.dtype == torch.bfloat16 else []
        words += ["checkpointing"] if self.checkpointing else []
        words += ["kl"] if self.kl else []
        words += ["rehearsal"] if self.rehearsal else []
        words += ["nf4"] if self.quantized else []
        return "-".join([*words, "cached"] if self.cached else words)


RESUMED = [Case("lora"), Case("adalora"), Case("ia3", optimizer="adafactor")]
"""Cases that are also stopped after `STOP` steps and resumed."""
CASES = [
    *RESUMED,
    Case("ia3"),
    Case("dora"),
    Case("loramoe"),
    Case("lora", optimizer="adafactor"),
    Case("lora", interwoven=False),
    Case("adalora", interwoven=False),
    Case("lora", checkpointing=True),
    Case("dora", dtype=torch.bfloat16),
    Case("lora", dtype=torch.bfloat16),
    Case("lora", interwoven=False, kl=0.5),
    Case("lora", cached=True),
    Case("lora", interwoven=False, rehearsal=True),
    # of the extra quantization, which PEFT imports in every process
    *([Case("lora", quantized=True)] if is_bitsandbytes_available() else []),
]


def cases_of(stage: Stage) -> list[Case]:
    """Offload differs little from the same stage without it, and ZeRO 1 from ZeRO 2; DoRA reads complete weights."""
    if stage == FSDP2:
        return [case for case in CASES if case.method != "dora" and not case.quantized]
    if stage.number == 1:
        return [case for case in CASES if case in RESUMED or case.kl or case.cached or case.dtype != torch.float32]
    return RESUMED if stage.offload else [case for case in CASES if stage.number == 2 or not case.quantized]


def build(case: Case, backbone: PreTrainedModel | None = None) -> dict[str, Any]:
    """Build a tiny model with its optimizer, LR scheduler and callbacks; see `tiny_siamese`."""
    adapter: AdapterSpec = {**ADAPTERS, "loramoe": lambda: tiny_loramoe(blc_weight=0.0)}[case.method]()
    gate = QUERY_GATE if case.interwoven else None
    model = tiny_siamese("llama", adapter, gate=gate, dtype=case.dtype, backbone=backbone)
    if case.kl is not None:
        model.kl_regularizer = KLRegularizer(weight=case.kl)
    cache = compute_in_memory(model, EXAMPLES, pad_id=0) if case.cached else None
    if case.checkpointing:
        model.activation_checkpointing_enable()
    optimizer = build_optimizer(
        model, name=case.optimizer, learning_rate=1e-2, gate_learning_rate=2e-2, weight_decay=0.01
    )
    num_steps = BATCH_PLAN.num_steps(len(EXAMPLES))
    lr_scheduler = build_lr_scheduler(
        optimizer, lr_scheduler_type="cosine", warmup_ratio=0.1, num_training_steps=num_steps
    )
    callbacks = adapter.callbacks(model.adapted, num_steps) if adapter.callbacks else None
    return {
        "model": model,
        "optimizer": optimizer,
        "lr_scheduler": lr_scheduler,
        "callbacks": callbacks,
        "cache": cache,
        "rehearsal": REHEARSAL if case.rehearsal else None,
    }


def single_device_engine(parts: dict[str, Any]) -> SingleDeviceEngine:
    return SingleDeviceEngine(
        parts["model"], optimizer=parts["optimizer"], lr_scheduler=parts["lr_scheduler"], max_grad_norm=0.5, device=CPU
    )


def deepspeed_engine(
    parts: dict[str, Any], *, stage: Stage, optimizer: str, dist_context: DistributedContext
) -> DeepSpeedEngine:
    sizes = [p.numel() for p in parts["model"].parameters() if p.requires_grad]
    config = deepspeed_config(
        stage=stage.number,
        offload=stage.offload,
        pin_memory=False,
        micro_batch_size=2,
        gradient_accumulation_steps=2,
        max_grad_norm=0.5,
        largest_param=max(sizes),
        num_trainable=sum(sizes),
        reduce_bucket_size=10_000,
        prefetch_bucket_size=10_000,
        max_live_parameters=10_000,
    )
    return DeepSpeedEngine(
        parts["model"],
        optimizer=parts["optimizer"],
        elementwise=optimizer in ELEMENTWISE,
        lr_scheduler=parts["lr_scheduler"],
        max_grad_norm=0.5,
        config=config,
        device=CPU,
        dist_context=dist_context,
    )


def saved_backbone(
    case: Case, load: Callable[..., PreTrainedModel], dist_context: DistributedContext
) -> PreTrainedModel:
    """Save `tiny_backbone` once and load it."""
    name = str(case.dtype).removeprefix("torch.")

    def save() -> str:
        tiny_backbone("llama", dtype=case.dtype).save_pretrained(folder := mkdtemp(), max_shard_size="30KB")
        return folder

    folder = dist_context.run_on_main(save)
    model = load(name_or_path=folder, dtype=name)
    dist_context.all_gather("")  # all have read it
    shutil.rmtree(folder, ignore_errors=True)
    return model


def build_in_one_process(case: Case, dist_context: DistributedContext | None = None) -> dict[str, Any]:
    """Return `build` with a backbone that each process loads whole."""
    if not case.quantized:
        return build(case)
    load = partial(load_backbone, quantization="nf4")
    return build(case, saved_backbone(case, load, dist_context or DistributedContext()))


def fsdp2_engine(parts: dict[str, Any], dist_context: DistributedContext) -> Fsdp2Engine:
    return Fsdp2Engine(
        parts["model"],
        optimizer=parts["optimizer"],
        lr_scheduler=parts["lr_scheduler"],
        max_grad_norm=0.5,
        device=CPU,
        dist_context=dist_context,
    )


class StoppedError(Exception):
    """Raised in every process after the checkpoint of ``stop_after``."""


def run(parts: dict[str, Any], engine: Engine, folder: Path, *, stop_after: int | None = None) -> dict[str, Any]:
    """Train; return the metrics of every step and the final trainables."""
    metrics: list[dict[str, float]] = []
    checkpoint = engine.dist_context.run_on_main(
        lambda: str(checkpoint_to_resume("auto", folder, identity=IDENTITY) or "")
    )
    manager = CheckpointManager(
        folder=folder,
        identity=IDENTITY,
        engine=engine,
        callbacks=parts["callbacks"],
        save_minutes=60,
        save_steps=stop_after,
        resume_from=Path(checkpoint) if checkpoint else None,
    )
    if stop_after is not None:
        save = manager.save

        def save_and_stop(state: TrainingState, metrics: dict[str, float]) -> None:
            save(state, metrics)
            raise StoppedError

        manager.save = save_and_stop  # type: ignore[method-assign, assignment]
    with suppress(StoppedError):
        train(
            parts["model"],
            EXAMPLES,
            engine=engine,
            callbacks=parts["callbacks"],
            batch_plan=BATCH_PLAN,
            checkpoint_manager=manager,
            pad_id=0,
            log=lambda step, values: metrics.append(values),
            validation_examples=EXAMPLES[:3],
            get_hidden_state_cache=lambda: parts["cache"],
            rehearsal=parts["rehearsal"],
        )
    return {"metrics": metrics, "values": engine.trainable_state_dict()}


def run_stage(stage: Stage, cases: Sequence[Case], output: Path, dist_context: DistributedContext) -> None:
    """Train all cases under a stage; resume from DeepSpeed's and from single-device checkpoints."""
    for case in cases:
        folder = output / str(stage) / str(case)
        zero = partial(run_distributed, case, stage=stage, dist_context=dist_context)
        results = {"full": zero(folder / "full")}
        if case in RESUMED:
            zero(folder / "resumed", stop_after=STOP)
            dist_context.run_on_main(partial(copy_for_single_device, folder))
            results["resumed"] = zero(folder / "resumed")
            results["from-single-device"] = zero(folder / "from-single-device")
        if dist_context.is_main:
            for name, result in results.items():
                path = folder.with_name(f"{case}-{name}")
                path.with_suffix(".json").write_text(json.dumps(result["metrics"]))
                save_file(result["values"], path.with_suffix(".safetensors"))


def run_distributed(
    case: Case, folder: Path, *, stage: Stage, dist_context: DistributedContext, stop_after: int | None = None
) -> dict[str, Any]:
    if stage == FSDP2:
        parts = build(case, saved_backbone(case, partial(load_sharded_backbone, device=CPU), dist_context))
        assert len(sharded_layers(parts["model"])) == 3
        return run(parts, fsdp2_engine(parts, dist_context), folder, stop_after=stop_after)
    parts = build_in_one_process(case, dist_context)
    engine = deepspeed_engine(parts, stage=stage, optimizer=case.optimizer, dist_context=dist_context)
    # every run and every engine's end collects garbage: skip the objects of libraries, also those imported late
    gc.freeze()
    result = run(parts, engine, folder, stop_after=stop_after)
    engine.close()
    return result


def copy_for_single_device(folder: Path) -> None:
    """Keep the checkpoint of the stopped run, from which a single device resumes as well."""
    shutil.copytree(folder / "resumed", folder / "for-single-device")


def main() -> None:
    rank, world_size, port, output = sys.argv[1:]
    store = TCPStore("127.0.0.1", int(port), is_master=False)
    dist_context = DistributedContext(rank=int(rank), world_size=int(world_size), store=store)
    init_process_group(dist_context, device=CPU, timeout_minutes=1)
    for stage in STAGES:
        run_stage(stage, cases_of(stage), Path(output), dist_context)


if __name__ == "__main__":
    main()
    exit_process(0)
