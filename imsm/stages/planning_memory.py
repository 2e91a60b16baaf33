"""What a plan says of a run's memory, part by part, with what each number rests on."""

from __future__ import annotations

from typing import TYPE_CHECKING

from imsm.evaluation.likelihood import COPIED
from imsm.plan.memory import (
    StaticMemory,
    bank_of_examples,
    cache_bytes,
    count_bytes,
    estimate_step,
    logit_bytes,
)
from imsm.plan.plan import MemoryItem, readable
from imsm.plan.share import ZeroSharding, shared_parts
from imsm.stages.engine import engine_settings, micro_batch_size
from imsm.stages.parts import needs_original_stream
from imsm.stages.planning_data import judged
from imsm.training.optimizer import ELEMENTWISE

if TYPE_CHECKING:
    from imsm.config import RunConfig
    from imsm.plan.examples import LengthStats
    from imsm.processes.layout import Topology
    from imsm.siamese.model import SiameseForCausalLM

TRAINING = "memory per GPU, training"
EVALUATION = "memory per GPU, evaluation"
DISK = "on disk"
RAM = "in the CPU's memory, of each process"


def memory_parts(
    config: RunConfig,
    model: SiameseForCausalLM,
    *,
    train: LengthStats | None,
    tests: dict[str, LengthStats],
    layout: Topology,
) -> dict[str, list[MemoryItem]]:
    """The parts of `TRAINING`, `EVALUATION`, and `DISK` or `RAM`.

    Args:
        config: the run's.
        model: without values.
        train: the training examples; None: nothing is trained.
        tests: each task's items.
        layout: the processes that share the training out.
    """
    exact = count_bytes(model, optimizer=config.trainer.optimizer)
    rows = micro_batch_size(config, processes=layout.size)
    prompt, answer = train.longest if train is not None else (1, 1)
    virtual = 0 if model.streams.virtual is None else model.streams.virtual.count
    step = estimate_step(
        model,
        rows=rows,
        tokens=virtual + prompt + answer,
        answer_tokens=answer,
        attention=config.backbone.attn_implementation,
        checkpointing=config.trainer.gradient_checkpointing,
        head_shared=layout.distributed and layout.stage == 3,
    )
    found = {}
    if train is not None:
        kept = f"kept of {rows} examples of {prompt} + {answer} tokens (longest prompt and answer)"
        kept += f", after {virtual} virtual ones" if virtual else ""
        if config.trainer.gradient_checkpointing:
            kept += ", layers' inputs and one layer"
        words = f"of {rows} × {answer} answer tokens, {model.config.vocab_size:,} words each"
        if step.logits < rows * answer * logit_bytes(model):
            words += ", a part at a time"
        found[TRAINING] = [
            *_training_parts(config, model, exact, layout),
            MemoryItem(name="activations", size=step.activations, how=kept, exact=False),
            MemoryItem(name="answer logits", size=step.logits, how=words, exact=False),
        ]
    caches = _caches(config, step.cache, tests, virtual=virtual)
    found[EVALUATION] = [*_model_parts(config, exact), caches]
    if train is not None and needs_original_stream(config) and config.hidden_state_cache != "off":
        found[RAM if config.hidden_state_cache == "ram" else DISK] = [_bank(config, model, train)]
    return found


def _training_parts(
    config: RunConfig, model: SiameseForCausalLM, exact: StaticMemory, layout: Topology
) -> list[MemoryItem]:
    """What one process has of the model, its gradients and the optimizer."""
    optimizer = config.trainer.optimizer
    if not layout.distributed:
        return [
            *_model_parts(config, exact),
            _exact("gradients", exact.gradients, "float32"),
            _exact("optimizer", exact.optimizer, optimizer),
        ]
    frozen = [p for p in model.parameters() if not p.requires_grad]
    ahead = config.engine.prefetch_bucket_size * frozen[0].element_size()
    zero = engine_settings(config, model, layout=layout)["zero_optimization"]
    shares = ZeroSharding(
        stage=layout.stage,
        size=layout.size,
        offload=layout.offload,
        elementwise=optimizer in ELEMENTWISE,
        bucket=zero["reduce_bucket_size"],
        gathered=min(exact.weights, ahead + max(p.nbytes for p in frozen)),
    )
    return shared_parts(exact, shares, optimizer=optimizer, weights=_weights(config, exact))


def _weights(config: RunConfig, exact: StaticMemory) -> str:
    shared = ", shared by both streams" if config.method.stream == "interwoven" else ""
    return f"{exact.frozen:,} frozen parameters in {config.backbone.dtype}{shared}"


def _model_parts(config: RunConfig, exact: StaticMemory) -> list[MemoryItem]:
    parts = [_exact("weights", exact.weights, _weights(config, exact))]
    if config.method.trainable:
        learns = "the gate" if config.frozen_adapter is not None else "adapter and gate"
        parts.append(_exact("trainables", exact.trainables, f"{learns} in float32"))
    return parts


def _caches(
    config: RunConfig,
    cache: list[tuple[int, int | None]],
    tests: dict[str, LengthStats],
    *,
    virtual: int,
) -> MemoryItem:
    """The largest keys and values of the tasks that are asked; virtual tokens are the tuned's.

    Either new tokens follow the prompts, or accepted answers follow copies of some of them.
    """
    rows, tasks = config.evaluation.batch_size, judged(config)
    streams = 2 if config.method.stream == "interwoven" else 1
    longest = {name: lengths.longest[0] for name, lengths in tests.items()}
    name = max(longest, key=lambda each: longest[each] + tasks[each].max_new_tokens)
    new = tasks[name].max_new_tokens
    size = None

    def held(tokens: int) -> int:
        found = cache_bytes(cache, rows=rows, tokens=virtual + tokens, streams=1)
        return found + cache_bytes(cache, rows=rows, tokens=tokens, streams=streams - 1)

    if cache:
        copies = min(COPIED, held(sum(tests[name].longest)))
        size = max(held(longest[name] + new), held(longest[name]) + copies)
    both = ", both streams" if streams == 2 else ""
    how = f"{rows} prompts of {name}, {longest[name]} (the longest) + {new} new tokens{both}"
    how += f", or copies of them up to {readable(COPIED)}, with accepted answers"
    how += f", the tuned one after {virtual} virtual tokens" if virtual else ""
    return MemoryItem(name="KV caches", size=size, how=how, exact=False)


def _bank(config: RunConfig, model: SiameseForCausalLM, train: LengthStats) -> MemoryItem:
    if train.examples is None or train.mean is None:
        how = "the number and the lengths of the examples are not known"
        return MemoryItem(name="memory bank", size=None, how=how, exact=False)
    answer = train.mean[1]
    size = bank_of_examples(model, examples=train.examples, answer_tokens=answer)
    limit = config.hidden_state_cache_gb
    how = (
        f"the original's memories of {train.examples:,} examples at {answer:.0f} answer tokens "
        f"(mean), and one of the query; hidden_state_cache={config.hidden_state_cache}, "
    )
    if size > limit * 1e9:
        how += f"more than hidden_state_cache_gb={limit:g}, so "
        how += "there will be none" if config.hidden_state_cache == "auto" else "it will be refused"
    else:
        how += "filled in the first steps"
        how += "" if config.hidden_state_cache == "ram" else " and kept for all runs"
    return MemoryItem(name="memory bank", size=size, how=how, exact=False)


def _exact(name: str, size: int, how: str) -> MemoryItem:
    return MemoryItem(name=name, size=size, how=how, exact=True)
