"""The GPUs of the runs of a sweep or a table: one per run where it fits, so that several run at once, else all.

Data parallelism shortens one run, at the cost of communication and of idle devices; several runs on one GPU each
have neither.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from imsm.config.schema import RunConfig
from imsm.distributed.gpus import visible_gpus
from imsm.distributed.topology import Topology
from imsm.models.siamese.model import SiameseForCausalLM
from imsm.pipeline.data import evaluated_tasks
from imsm.pipeline.engine import topology_of
from imsm.pipeline.plan.data import LengthStats, split_lengths
from imsm.pipeline.plan.machine import gpu_memory
from imsm.pipeline.plan.memory import EVALUATION, TRAINING, estimate_memory, planned_batch_size
from imsm.pipeline.plan.meta import build_plan_model
from imsm.pipeline.plan.time import FACTOR, estimate_duration, estimate_time
from imsm.utils.errors import UserError
from imsm.utils.formatting import format_duration
from imsm.utils.hashing import hash_json

_KV_CACHES = "KV caches"
_known: dict[tuple[str, int], int] = {}


class GpuPool:
    """The GPUs that runs on this machine share; ``names`` are those of `imsm.distributed.gpus.gpu_names`."""

    def __init__(self, names: Sequence[str]) -> None:
        self.size = len(names)
        self._free = list(names)

    def take(self, count: int) -> list[str] | None:
        """Return ``count`` free GPUs, which are in use until `give_back`; None if there are fewer."""
        if count > len(self._free):
            return None
        taken, self._free = self._free[:count], self._free[count:]
        return taken

    def give_back(self, names: Sequence[str]) -> None:
        """Free the GPUs of a run that ended."""
        self._free += names


def gpus_of_run(config: RunConfig, *, gpus: int) -> int:
    """Return how many of this machine's ``gpus`` a run of a sweep uses.

    These are the processes that its engine requests; without a number, one GPU if the plan's estimate fits there or
    is unknown, else all of them.
    """
    engine = config.engine
    if not gpus or engine.device == "cpu":
        return 0
    if engine.nnodes > 1:
        return gpus
    if engine.nproc_per_node is not None:
        return min(engine.nproc_per_node, gpus)
    if engine.fsdp2:
        return gpus
    if gpus == 1 or engine.stage == 0:
        return 1
    # runs of a table often differ in the seed only
    key = _without_seed(config), gpus
    if key not in _known:
        _known[key] = 1 if _fits_one_gpu(config) else gpus
    return _known[key]


def _fits_one_gpu(config: RunConfig) -> bool:
    inputs = _plan_inputs(config)
    return inputs is None or fits_one_gpu(config, inputs.model, train=inputs.train, tests=inputs.tests)


@dataclass(frozen=True)
class _PlanInputs:
    """What an estimate reads."""

    model: SiameseForCausalLM
    train: LengthStats | None
    tests: dict[str, LengthStats]


def _plan_inputs(config: RunConfig) -> _PlanInputs | None:
    """Return what an estimate of a run reads; None if its model is unknown, or invalid, which the run reports."""
    try:
        model, _ = build_plan_model(config)
        if model is None:
            return None
        train = None
        if config.method.trainable:
            train = split_lengths(config, config.data, "train").limited(config.data.max_train_examples)
        tests = {name: split_lengths(config, task, "test") for name, task in evaluated_tasks(config).items()}
    except UserError:
        return None
    return _PlanInputs(model, train, tests)


def sweep_time(configs: Sequence[RunConfig], *, gpus: int) -> str | None:
    """Return how long runs take on the GPUs of this machine in their order, as text.

    None if one of them is unknown, is a sequence of tasks, or uses no GPU.
    The original is counted for each of them, although they share its responses.
    """
    jobs, known = list[tuple[int, float]](), dict[str, float | None]()
    for config in configs:
        key = _without_seed(config)
        if key not in known:
            known[key] = _seconds(config, gpus=gpus)
        seconds, count = known[key], gpus_of_run(config, gpus=gpus)
        if seconds is None or not count:
            return None
        jobs.append((count, seconds))
    counts = " or ".join(str(count) for count in sorted({count for count, _ in jobs}))
    total = format_duration(makespan(jobs, gpus))
    return f"{len(jobs)} runs on {counts} of {gpus} GPUs each: about {total}, within a factor of {FACTOR}"


def makespan(jobs: Sequence[tuple[int, float]], gpus: int) -> float:
    """Return the seconds until all jobs, (GPUs, seconds), have ended; they start in their order on free GPUs."""
    free_at, started = [0.0] * gpus, 0.0
    for count, seconds in jobs:
        free_at.sort()
        started = max(started, free_at[count - 1])
        free_at[:count] = [started + seconds] * count
    return max(free_at)


def _seconds(config: RunConfig, *, gpus: int) -> float | None:
    inputs = _plan_inputs(config)
    if inputs is None or config.task_sequence is not None:
        return None
    count = gpus_of_run(config, gpus=gpus)
    topology = one_gpu(config) if count == 1 else topology_of(config, gpus=count)
    batch_size = planned_batch_size(config, inputs.model, tests=inputs.tests, topology=topology)
    options: dict[str, Any] = {"train": inputs.train, "tests": inputs.tests, "topology": topology}
    found = estimate_duration(config, inputs.model, **options, batch_size=batch_size)
    return None if found is None else found.training + found.evaluation


def _without_seed(config: RunConfig) -> str:
    return hash_json({**config.to_dict(), "seed": 0, "run_dir": None})


def fits_one_gpu(
    config: RunConfig, model: SiameseForCausalLM, *, train: LengthStats | None, tests: dict[str, LengthStats]
) -> bool:
    """Return whether training fits on one GPU by the plan's estimate; an evaluation fits by its batch size.

    ``model`` is on the meta device. Parts of unknown size count as nothing.
    """
    memory = estimate_memory(config, model, train=train, tests=tests, topology=one_gpu(config), batch_size=1)
    parts = {
        title: [item for item in memory.get(title, []) if item.name != _KV_CACHES] for title in (TRAINING, EVALUATION)
    }
    return all(sum(item.size or 0 for item in items) <= gpu_memory() for items in parts.values())


def one_gpu(config: RunConfig) -> Topology:
    """Return the topology of a run that sees one GPU."""
    engine = config.engine
    return Topology(stage=engine.stage or 0, offload=engine.offload, device="cuda", nproc_per_node=1, nnodes=1)


def describe_placement(
    config: RunConfig,
    model: SiameseForCausalLM,
    *,
    train: LengthStats | None,
    tests: dict[str, LengthStats],
    topology: Topology,
    batch_size: int,
) -> str | None:
    """Return how a sweep or a table places such runs on the GPUs of a node, and how long each takes; None for one GPU.

    The arguments are those of `estimate_time`, with the topology of the run alone.
    """
    gpus = max(topology.nproc_per_node, visible_gpus())
    if topology.device != "cuda" or gpus == 1:
        return None
    if not fits_one_gpu(config, model, train=train, tests=tests):
        return f"all {gpus} GPUs per run, one run after the other"
    alone = estimate_time(config, model, train=train, tests=tests, topology=one_gpu(config), batch_size=batch_size)
    fixed = " without engine.nproc_per_node" if config.engine.nproc_per_node is not None else ""
    return f"one GPU per run, {gpus} at once{fixed}; each {alone}"
