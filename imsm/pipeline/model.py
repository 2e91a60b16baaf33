"""Build, load and identify the model of a run."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import distributed
from transformers import PreTrainedModel
from transformers.utils import GENERATION_CONFIG_NAME

from imsm.config.schema import RunConfig
from imsm.distributed.lock_step import LockStep
from imsm.models.adapters.base import AdapterSpec, adapter_from_config
from imsm.models.backbones.fingerprint import attention_implementation
from imsm.models.backbones.loading import load_backbone
from imsm.models.backbones.sharded import load_sharded_backbone, sharded_layers
from imsm.models.builder import build_model
from imsm.models.siamese.kl import KLRegularizer
from imsm.models.siamese.model import SiameseForCausalLM
from imsm.models.siamese.serialization import ADAPTER
from imsm.utils.hashing import hash_json
from imsm.utils.machine import device_name
from imsm.utils.manifest import verify_run_model
from imsm.utils.run_dir import RunDir

_ROUTE_SHARES = {"lm": 0.0, "route": 1.0, "route_kl": 0.5}
"""`gate.loss` -> share of the steps with the route loss."""
_VERSION = 2
"""Version of the content of `model_hash`."""
_TUNED_FILES = (f"{ADAPTER}/", GENERATION_CONFIG_NAME)
"""Starts of the names of files that the tuned stream reads; gate, pooling and tokenizer do not change its answers."""


def build_adapter(config: RunConfig) -> AdapterSpec:
    """Return the PEFT method, with the backbone's target modules if it takes any."""
    peft = config.peft
    return adapter_from_config(peft.target, peft.arguments(), peft.target_modules(config.backbone))


def model_kwargs(config: RunConfig) -> dict[str, Any]:
    """Return the arguments of `build_model`, except the adapter and the device."""
    gate = skip_threshold = None
    if config.method.stream == "interwoven":
        gate = {"_target_": config.gate.target, **config.gate.arguments()}
        skip_threshold = config.gate.skip_threshold if config.gate.skip else None
    quantized = set() if config.backbone.quantization is None else {"quantization"}
    return {
        "backbone": config.backbone.model_dump(
            include={"name_or_path", "revision", "dtype", "attn_implementation", "local_resolver"} | quantized
        ),
        "gate": gate,
        "pooling": config.gate.pooling,
        "skip_threshold": skip_threshold,
        "stream": config.method.stream,
        "seed": config.seed,
    }


def new_model(config: RunConfig, adapter: AdapterSpec | None, *, device: torch.device) -> SiameseForCausalLM:
    """Build the model as it is before training; without an adapter, the original model.

    With `frozen_adapter`, the adapter is loaded from that run instead.

    Raises:
        UserError: As for `build_model`, or the frozen adapter changed since it was saved.
    """
    source: AdapterSpec | Path | None = adapter
    if adapter is not None and config.frozen_adapter is not None:
        frozen = RunDir(Path(config.frozen_adapter))
        verify_run_model(frozen)
        source = frozen.adapter
    return build_model(adapter=source, device=device, load=_backbone_loader(config, device), **model_kwargs(config))


def load_run_model(config: RunConfig, run: RunDir, *, device: torch.device) -> SiameseForCausalLM:
    """Load the trained model of a run, or the original model if the method trains nothing."""
    if config.method.trainable:
        return SiameseForCausalLM.from_pretrained(run.path, device=device, load=_backbone_loader(config, device))
    return new_model(config, None, device=device)


def _backbone_loader(config: RunConfig, device: torch.device) -> Callable[..., PreTrainedModel]:
    # other commands read a run's configuration, too, and load its model in one process
    if config.engine.fsdp2 and distributed.is_initialized():
        return partial(load_sharded_backbone, device=device)
    return load_backbone


def lock_step(get_model: Callable[[], SiameseForCausalLM]) -> AbstractContextManager[None]:
    """Return a block in which the processes of a run may run different numbers of passes of a sharded model."""
    model = get_model()
    return LockStep(sharded_layers(model), device=model.device)


def build_kl_regularizer(config: RunConfig) -> KLRegularizer | None:
    """Return the KL penalty towards the original model, or None if `trainer.kl_beta` is unset."""
    weight, mask_target = config.trainer.kl_beta, config.trainer.kl_mask_target
    return None if weight is None else KLRegularizer(weight=weight, mask_target=mask_target)


def frozen_adapter_hash(config: RunConfig) -> str | None:
    """Return the hash of the frozen adapter's files, or None without `frozen_adapter`.

    Raises:
        UserError: The adapter changed since it was saved.
    """
    if config.frozen_adapter is None:
        return None
    files = verify_run_model(RunDir(Path(config.frozen_adapter)))
    return hash_json(sorted((name, sha256) for name, sha256 in files.items() if name.startswith(f"{ADAPTER}/")))


def route_share(config: RunConfig) -> float:
    """Return the share of the steps, from the first on, in which the gate learns from the route loss."""
    return _ROUTE_SHARES[config.gate.loss] if config.method.stream == "interwoven" else 0.0


def needs_original_stream(config: RunConfig, *, texts: bool = False) -> bool:
    """Return whether training reads the original's hidden states (interwoven stream or KL penalty).

    They are those of the target's examples, or with ``texts`` those of rehearsal's texts.
    """
    # the KL penalty compares with the original's logits, which its hidden states determine
    regularized = config.rehearsal.loss == "kl" if texts else config.trainer.kl_beta is not None
    return config.method.trainable and (config.method.stream == "interwoven" or regularized)


def format_trainable(counts: dict[str, int]) -> str:
    """Return the log line for the number of trainable parameters."""
    adapter, gate = counts["adapter"], counts["gate"]
    return f"trainable parameters: {adapter + gate:,} (adapter {adapter:,}, gate {gate:,})"


def inference_settings(config: RunConfig, *, device: torch.device) -> dict[str, str]:
    """Return what changes the answers of a model besides its files: precision, attention, device and static caches.

    Reduced precision rounds differently on every model of GPU or processor, so its name counts as well. The masked
    columns of a static cache change the order of sums.
    """
    backbone = config.backbone
    attention = attention_implementation(
        name_or_path=backbone.name_or_path,
        revision=backbone.revision,
        local_resolver=backbone.local_resolver,
        dtype=backbone.dtype,
        attn_implementation=backbone.attn_implementation,
    )
    name = "" if backbone.dtype == "float32" else f" {device_name(device)}"
    # omitted by default, which keeps the keys of responses from before it existed
    optional = {"decoding": "static cache"} if config.evaluation.static_cache else {}
    optional |= {"quantization": backbone.quantization} if backbone.quantization is not None else {}
    return {"dtype": backbone.dtype, "attention": attention, "device": f"{device.type}{name}"} | optional


def model_hash(
    stream: str, *, backbone_hash: str, settings: Mapping[str, str], files: Mapping[str, str] | None = None
) -> str:
    """Return the hash that identifies the responses of a stream of a model.

    ``settings`` are `inference_settings`, and ``files`` the hashes of the files of a trained model. The tuned stream
    depends on some of them only, and the original on none: its responses are shared by all runs.
    """
    used = {name: each for name, each in (files or {}).items() if stream != "tuned" or name.startswith(_TUNED_FILES)}
    return hash_json([_VERSION, backbone_hash, sorted(settings.items()), stream, sorted(used.items())])
