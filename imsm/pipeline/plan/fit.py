"""Compare a run with this machine's memory, before anything is allocated."""

from collections.abc import Iterator

from imsm.config.schema import RunConfig
from imsm.distributed.gpus import visible_gpus
from imsm.distributed.topology import Topology
from imsm.models.builder import count_trainable
from imsm.models.siamese.model import SiameseForCausalLM
from imsm.pipeline.engine import micro_batch_size, topology_of
from imsm.pipeline.plan.machine import machine_memory
from imsm.pipeline.plan.memory import exact_items
from imsm.pipeline.plan.meta import build_plan_model
from imsm.utils.errors import UserError
from imsm.utils.formatting import format_bytes

# Sizes of batches and responses are upper bounds: datasets, prompts and responses are often smaller.
_ESTIMATE_FACTOR = 10
_INDEX_BYTES = 40  # of one example in the order of an epoch: the number and its place in a list
_ASSUMED_EXAMPLES = 1000  # of a training set of unknown size


def check_fits(config: RunConfig, *, prompt_tokens: int, processes: int | None) -> None:
    """Check that this machine's memory can hold a run that starts as one of ``processes``, or alone (None).

    ``prompt_tokens`` is the length of the longest prompt.

    Raises:
        UserError: It cannot; the message names the key with the largest part.
    """
    model, _ = build_plan_model(config)
    if model is None:
        return
    topology = topology_of(config, gpus=visible_gpus(), joined=processes)
    problem = memory_problem(config, model, prompt_tokens=prompt_tokens, topology=topology)
    if problem is not None:
        raise UserError(problem)


def memory_problem(
    config: RunConfig, model: SiameseForCausalLM, *, prompt_tokens: int, topology: Topology
) -> str | None:
    """Return "key=value: problem; fix" if this machine cannot hold the run, or None; see `check_fits`.

    ``model`` is on the meta device.
    """
    available = machine_memory(topology.device)
    # all processes of a node share its CPU memory
    processes = topology.nproc_per_node if topology.device == "cpu" else 1
    needed = processes * sum(item.size or 0 for item in exact_items(config, model, topology))
    if needed > available:
        return f"{_largest_part(config, model)}: {_comparison('the model', needed, available)}"
    order = config.trainer.num_epochs * (config.data.max_train_examples or _ASSUMED_EXAMPLES) * _INDEX_BYTES
    if config.method.trainable and order > available:
        given = f"trainer.num_epochs={config.trainer.num_epochs}"
        return f"{given}: {_comparison('the order of the examples', order, available)}"
    token_bytes = _token_bytes(model)
    for given, what, tokens in _estimates(config, topology, prompt_tokens=prompt_tokens):
        if tokens * token_bytes > _ESTIMATE_FACTOR * available:
            return f"{given}: {_comparison(what, tokens * token_bytes, available)}"
    return None


def _comparison(what: str, size: int, available: int) -> str:
    return f"{what} needs about {format_bytes(size)} of memory, this machine has {format_bytes(available)}; reduce it"


def _largest_part(config: RunConfig, model: SiameseForCausalLM) -> str:
    """Return the key and value of the part of the model with the most bytes."""
    trainable = count_trainable(model)
    rank, arguments = config.gate.rank, config.peft.arguments()
    gate = f"gate.rank={rank}" if rank is not None else f"gate={config.gate.name}"
    adapter = f"peft.r={arguments['r']}" if "r" in arguments else f"peft={config.peft.name}"
    frozen = sum(p.numel() for p in model.parameters() if not p.requires_grad)
    parts = {gate: trainable["gate"], adapter: trainable["adapter"], f"backbone={config.backbone.name}": frozen}
    return max(parts, key=parts.__getitem__)


def _token_bytes(model: SiameseForCausalLM) -> int:
    """Return the bytes of one token's hidden states in all layers."""
    itemsize = next(model.get_input_embeddings().parameters()).dtype.itemsize
    return int(model.config.text_config.num_hidden_layers) * int(model.config.hidden_size) * itemsize


def _estimates(config: RunConfig, topology: Topology, *, prompt_tokens: int) -> Iterator[tuple[str, str, int]]:
    """Yield key and value, what it affects, and the number of tokens that this holds at once."""
    recipe, batch, new_tokens = config.trainer, config.evaluation.fixed_batch_size, config.data.max_new_tokens
    if config.method.trainable:
        key = "micro_batch_size" if recipe.micro_batch_size is not None else "global_batch_size"
        key = "micro_batch_tokens" if recipe.micro_batch_tokens is not None else key
        rows = micro_batch_size(config, processes=topology.world_size, tokens=prompt_tokens)
        yield f"trainer.{key}={getattr(recipe, key)}", "a training step", rows * prompt_tokens
    yield f"evaluation.batch_size={batch}", "a batch of prompts", batch * prompt_tokens
    yield f"data.max_new_tokens={new_tokens}", "a batch of responses", batch * new_tokens
