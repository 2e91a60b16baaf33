"""Estimate how long a run takes, from its floating-point operations and the device's speed.

A forward pass costs 2 operations per weight and token, the backward pass through frozen weights 2 more (Kaplan et
al., 2020, section 2.1: 2 of the 4 are for gradients of the weights, which only the adapter needs).
"""

import math
import os
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from imsm.config.schema import RunConfig
from imsm.distributed.topology import Topology
from imsm.models.siamese.model import SiameseForCausalLM
from imsm.pipeline.data import evaluated_tasks
from imsm.pipeline.engine import batch_plan_of, micro_batch_size
from imsm.pipeline.model import needs_original_stream
from imsm.pipeline.plan.data import LengthStats, rehearsal_lengths
from imsm.utils.formatting import format_duration

FACTOR = 3
"""The estimate's accuracy: measured runs took between a third of it and three times as long."""

# Dense bfloat16 and float32 operations per second, and bytes per second, from the vendor's data sheets.
GPUS = {
    "H200": (989e12, 67e12, 4.8e12),
    "H100": (989e12, 67e12, 3.35e12),
    "A100": (312e12, 19.5e12, 2.0e12),
    "L40S": (362e12, 91e12, 0.86e12),
    "L4": (121e12, 30e12, 0.3e12),
    "A10": (125e12, 31e12, 0.6e12),
    "V100": (125e12, 15.7e12, 0.9e12),
    "4090": (165e12, 82e12, 1.0e12),
    "3090": (71e12, 35e12, 0.94e12),
}
ASSUMED_GPU = "A100"
_GPU_UTILIZATION = 0.35
# Measured for decoder layers of transformers with LoRA: operations are started one by one.
_LAYER_SECONDS = 0.5e-3
_MEASURE_SECONDS = 0.2


@dataclass(frozen=True, kw_only=True)
class DeviceSpeed:
    """Operations and bytes per second of one device."""

    name: str
    flops: float
    bandwidth: float


@dataclass(frozen=True, kw_only=True)
class Workload:
    """Operations of a run, and how often all layers are started or all weights are read."""

    training_flops: float
    training_passes: float  # forward passes of micro-batches; a backward pass counts as two
    evaluation_flops: float
    decoding_steps: int  # over all batches and evaluated models
    decoding_passes: int  # forward passes in these steps: two with both streams
    uses_limits: bool  # whether lengths or counts are upper limits, because the data is not available


@dataclass(frozen=True, kw_only=True)
class Duration:
    """Seconds of a run, with the speed of each device; ``uses_limits`` as in `Workload`."""

    training: float
    evaluation: float
    speed: DeviceSpeed
    uses_limits: bool


def estimate_time(
    config: RunConfig,
    model: SiameseForCausalLM,
    *,
    train: LengthStats | None,
    tests: Mapping[str, LengthStats],
    topology: Topology,
    batch_size: int | None = None,
) -> str:
    """Return the duration of training and evaluation as text, with the speed that it is based on.

    ``batch_size`` is that of the evaluation (`planned_batch_size`); None for `evaluation.batch_size`.
    """
    found = estimate_duration(config, model, train=train, tests=tests, topology=topology, batch_size=batch_size)
    if found is None:
        return "unknown: the number of examples is unknown until the data is available"
    devices = f"{topology.world_size} × {found.speed.name}" if topology.world_size > 1 else found.speed.name
    most = "at most " if found.uses_limits else ""
    parts = f"training {format_duration(found.training)}, evaluation {format_duration(found.evaluation)}"
    return (
        f"{most}about {format_duration(found.training + found.evaluation)} ({parts}; {devices}, "
        f"{found.speed.flops / 1e12:.3g} TFLOP/s; within a factor of {FACTOR})"
    )


def estimate_duration(
    config: RunConfig,
    model: SiameseForCausalLM,
    *,
    train: LengthStats | None,
    tests: Mapping[str, LengthStats],
    topology: Topology,
    batch_size: int | None = None,
) -> Duration | None:
    """Return the seconds of a run, or None if the number of examples is unknown; see `estimate_time`."""
    tokens = 1 if train is None else sum(train.mean or train.longest)
    rows = micro_batch_size(config, processes=topology.world_size, tokens=tokens)
    load = workload(config, model, train=train, tests=tests, rows=rows, batch_size=batch_size)
    if load is None:
        return None
    speed = device_speed(model, device=topology.device, rows=rows * math.ceil(tokens))
    layers = int(model.config.text_config.num_hidden_layers) * _LAYER_SECONDS
    weight_bytes = sum(_weight_counts(model)) * next(model.backbone.parameters()).element_size()
    training = load.training_flops / speed.flops + load.training_passes * layers
    evaluation = load.evaluation_flops / speed.flops + load.decoding_passes * layers
    evaluation += load.decoding_steps * weight_bytes / speed.bandwidth
    return Duration(
        training=training / topology.world_size,
        evaluation=evaluation / topology.world_size,
        speed=speed,
        uses_limits=load.uses_limits,
    )


def workload(
    config: RunConfig,
    model: SiameseForCausalLM,
    *,
    train: LengthStats | None,
    tests: Mapping[str, LengthStats],
    rows: int,
    batch_size: int | None = None,
) -> Workload | None:
    """Count the operations of a run with micro-batches of ``rows``; None if the number of examples is unknown.

    ``batch_size`` is that of the evaluation; None for `evaluation.batch_size`.

    A mixture-of-experts model is counted as if every expert read every token.
    """
    flops, passes = 0.0, 0.0
    if train is not None:
        if train.examples is None:
            return None
        prompt, answer = train.mean or train.longest
        epochs = config.trainer.num_epochs
        forward = epochs * (2 if config.trainer.gradient_checkpointing else 1)
        if needs_original_stream(config):
            # with the cache the original reads each example once
            forward += 1 if config.hidden_state_cache != "off" else epochs
        # a backward pass through frozen weights has the operations of one forward pass
        backward = epochs
        if config.frozen_adapter is not None and config.hidden_state_cache != "off":
            # both streams read each example once, and only the gate is trained
            forward, backward = 2, 0
        flops = train.examples * (forward + backward) * _example_flops(model, prompt + answer, answer)
        passes = math.ceil(train.examples / rows) * (forward + 2 * backward)
        text_flops, text_passes = _rehearsal_workload(config, model, train=train, rows=rows)
        flops, passes = flops + text_flops, passes + text_passes
    evaluation, steps, decoding_passes = 0.0, 0, 0
    # the original is evaluated in every run
    streams = [1]
    if config.method.trainable:
        streams += [2 if config.method.stream == "interwoven" else 1] * (1 + _kept_checkpoints(config, train))
    tasks = evaluated_tasks(config)
    for name, lengths in tests.items():
        limit = config.evaluation.limit_of(name)
        count = limit if lengths.examples is None else lengths.limited(limit).examples
        if count is None:
            return None
        prompt, answer = lengths.mean or lengths.longest
        new = min(math.ceil(answer), tasks[name].max_new_tokens)
        # after one prefill: the response, and the likelihood of an accepted answer
        evaluation += sum(streams) * count * _example_flops(model, prompt + 2 * new, 2 * new)
        batch_steps = math.ceil(count / (batch_size or config.evaluation.fixed_batch_size)) * new
        steps, decoding_passes = steps + len(streams) * batch_steps, decoding_passes + sum(streams) * batch_steps
    known = [*tests.values(), *([train] if train is not None else [])]
    return Workload(
        training_flops=flops,
        training_passes=passes,
        evaluation_flops=evaluation,
        decoding_steps=steps,
        decoding_passes=decoding_passes,
        uses_limits=any(lengths.mean is None for lengths in known),
    )


def _rehearsal_workload(
    config: RunConfig, model: SiameseForCausalLM, *, train: LengthStats, rows: int
) -> tuple[float, float]:
    """Return the operations and the passes over the weights of rehearsal's texts, their generation included."""
    texts, settings = rehearsal_lengths(config, train), config.rehearsal
    if texts is None or train.examples is None or texts.examples is None or settings.batch_size is None:
        return 0.0, 0.0
    prompt, answer = texts.mean or texts.longest
    read = settings.batch_size * batch_plan_of(config, processes=1).num_steps(train.examples)
    # reads of a text: by the trained stream, its backward pass, and the original stream
    backward = float(read)
    forward = read * (2.0 if config.trainer.gradient_checkpointing else 1.0)
    cached = config.hidden_state_cache != "off"
    if needs_original_stream(config, texts=True):
        forward += min(read, texts.examples) if cached else read
    if config.frozen_adapter is not None and cached:
        forward, backward = 2.0 * min(read, texts.examples), 0.0
    passes = (forward + 2 * backward) / rows
    if settings.max_tokens is not None:
        forward += texts.examples
        passes += math.ceil(texts.examples / config.evaluation.fixed_batch_size) * settings.max_tokens
    return (forward + backward) * _example_flops(model, prompt + answer, answer), passes


def _kept_checkpoints(config: RunConfig, train: LengthStats | None) -> int:
    """Return the number of checkpoints that are evaluated besides the trained model; None: nothing is trained."""
    save_steps = config.trainer.save_steps
    if not config.evaluation.checkpoints or save_steps is None or train is None or train.examples is None:
        return 0
    return (batch_plan_of(config, processes=1).num_steps(train.examples) - 1) // save_steps


def device_speed(model: SiameseForCausalLM, *, device: str, rows: int) -> DeviceSpeed:
    """Return the speed of a visible GPU by its name, of an assumed GPU, or of this CPU as measured.

    ``rows`` is the number of tokens in a forward pass: small products are slower.
    """
    dtype = next(model.backbone.parameters()).dtype
    if device == "cuda":
        visible = torch.cuda.get_device_name() if torch.cuda.is_available() else ""
        known = next((name for name in GPUS if re.search(rf"\b{name}\b", visible)), None)
        bf16, fp32, bandwidth = GPUS[known or ASSUMED_GPU]
        name = visible if known else f"{ASSUMED_GPU} (assumed)"
        return DeviceSpeed(
            name=name, flops=_GPU_UTILIZATION * (fp32 if dtype == torch.float32 else bf16), bandwidth=bandwidth
        )
    hidden = int(model.config.hidden_size)
    name = f"CPU with {torch.get_num_threads()} of {os.cpu_count()} threads"
    return DeviceSpeed(name=name, flops=_measure_flops(hidden, rows, dtype), bandwidth=_measure_bandwidth())


def _weight_counts(model: SiameseForCausalLM) -> tuple[int, int]:
    """Return the number of weights in the decoder's products, and in the LM head."""
    embeddings = model.backbone.get_input_embeddings().weight
    output = model.backbone.get_output_embeddings()
    head = 0 if output is None else output.weight.numel()
    excluded = {id(embeddings)} | ({id(output.weight)} if output is not None else set())
    return sum(p.numel() for p in model.backbone.parameters() if id(p) not in excluded and p.ndim > 1), head


def _example_flops(model: SiameseForCausalLM, tokens: float, predicted: float) -> float:
    """Return the operations of one example's forward pass, with the LM head for ``predicted`` tokens."""
    body, head = _weight_counts(model)
    text = model.config.text_config
    # query-key and attention-value products over the causal half
    attention = 2 * int(text.num_hidden_layers) * int(text.hidden_size) * tokens
    return tokens * (2 * body + attention) + 2 * head * predicted


def _measure_flops(hidden: int, rows: int, dtype: torch.dtype) -> float:
    # a layer's larger product
    rows = min(rows, 4096)
    one, other = torch.ones(rows, hidden, dtype=dtype), torch.ones(hidden, 4 * hidden, dtype=dtype)
    best = _best_seconds(lambda: torch.mm(one, other))
    return rows * hidden * 4 * hidden * 2 / best


def _measure_bandwidth() -> float:
    source = torch.ones(16 * 2**20)
    return 2 * source.nbytes / _best_seconds(source.clone)


def _best_seconds(function: Callable[[], object]) -> float:
    """Return the shortest time of a call; other programs can only slow it down."""
    function()  # allocates memory and starts threads
    best, started = math.inf, time.perf_counter()
    while (now := time.perf_counter()) - started < _MEASURE_SECONDS:
        function()
        best = min(best, time.perf_counter() - now)
    return best
