"""Build, load and identify the model of a run."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from imsm.config.schema import RunConfig
from imsm.models.adapters.base import AdapterSpec, adapter_from_config
from imsm.models.builder import build_model
from imsm.models.siamese.kl import KLRegularizer
from imsm.models.siamese.model import SiameseForCausalLM
from imsm.utils.hashing import hash_file_cached, hash_json
from imsm.utils.run_dir import RunDir


def build_adapter(config: RunConfig) -> AdapterSpec:
    """Return the PEFT method, with the backbone's target modules if it takes any."""
    peft = config.peft
    return adapter_from_config(peft.target, peft.arguments(), peft.target_modules(config.backbone))


def model_kwargs(config: RunConfig) -> dict[str, Any]:
    """Return the arguments of `build_model`, except the adapter and the device."""
    gate = None
    if config.method.stream == "interwoven":
        gate = {"_target_": config.gate.target, **config.gate.arguments()}
    return {
        "backbone": config.backbone.model_dump(
            include={"name_or_path", "revision", "dtype", "attn_implementation", "local_resolver"}
        ),
        "gate": gate,
        "pooling": config.gate.pooling,
        "stream": config.method.stream,
        "seed": config.seed,
    }


def new_model(config: RunConfig, adapter: AdapterSpec | None, *, device: torch.device) -> SiameseForCausalLM:
    """Build the model as it is before training; without an adapter, the original model.

    With `frozen_adapter`, the adapter is loaded from that run instead.
    """
    source: AdapterSpec | Path | None = adapter
    if adapter is not None and config.frozen_adapter is not None:
        source = RunDir(Path(config.frozen_adapter)).adapter
    return build_model(adapter=source, device=device, **model_kwargs(config))


def load_run_model(config: RunConfig, run: RunDir, *, device: torch.device) -> SiameseForCausalLM:
    """Load the trained model of a run, or the original model if the method trains nothing."""
    if config.method.trainable:
        return SiameseForCausalLM.from_pretrained(run.path, device=device)
    return new_model(config, None, device=device)


def build_kl_regularizer(config: RunConfig) -> KLRegularizer | None:
    """Return the KL penalty towards the original model, or None if `trainer.kl_beta` is unset."""
    weight, mask_target = config.trainer.kl_beta, config.trainer.kl_mask_target
    return None if weight is None else KLRegularizer(weight=weight, mask_target=mask_target)


def needs_original_stream(config: RunConfig) -> bool:
    """Return whether training reads the original's hidden states (interwoven stream or KL penalty)."""
    # the KL penalty compares with the original's logits, which its hidden states determine
    regularized = config.trainer.kl_beta is not None
    return config.method.trainable and (config.method.stream == "interwoven" or regularized)


def format_trainable(counts: dict[str, int]) -> str:
    """Return the log line for the number of trainable parameters."""
    adapter, gate = counts["adapter"], counts["gate"]
    return f"trainable parameters: {adapter + gate:,} (adapter {adapter:,}, gate {gate:,})"


def weight_hashes(folder: Path) -> list[list[str]]:
    """Return the relative path and SHA-256 of each safetensors file in ``folder``."""
    # sorted: rglob returns the order of the file system, and the list is hashed
    files = sorted(folder.rglob("*.safetensors"))
    return [[str(file.relative_to(folder)), hash_file_cached(file)] for file in files]


def model_hash(
    config: RunConfig, stream: str, *, backbone_hash: str, trained_hashes: Sequence[Sequence[str]] = ()
) -> str:
    """Return the hash that identifies the responses of a model: weights, dtype and stream.

    ``trained_hashes`` are the `weight_hashes` of adapter and gate.
    """
    parts: list[Any] = [backbone_hash, config.backbone.dtype, stream]
    # without trained weights the hash is the same in all runs, which share the original's responses
    return hash_json([*parts, trained_hashes] if trained_hashes else parts)
