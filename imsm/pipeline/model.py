"""What a run's model is put together from, as keyword arguments for `imsm.models.builder`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from imsm.models.siamese.kl import KLRegularizer
from imsm.utils.instantiate import accepts_target_modules, import_target

if TYPE_CHECKING:
    from imsm.config.schema import RunConfig
    from imsm.models.adapters.base import AdapterSpec


def build_adapter(config: RunConfig) -> AdapterSpec:
    """The PEFT method, on the backbone's modules if it changes any."""
    build = import_target(config.peft.target)
    arguments = config.peft.arguments()
    if accepts_target_modules(build):
        arguments["target_modules"] = config.peft.target_modules(config.backbone)
    adapter: AdapterSpec = build(**arguments)
    return adapter


def model_kwargs(config: RunConfig) -> dict[str, Any]:
    """The arguments of `assemble` besides the adapter."""
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


def build_kl_regularizer(config: RunConfig) -> KLRegularizer | None:
    """How hard the training is held to the original; None: not at all."""
    weight, mask_target = config.trainer.kl_beta, config.trainer.kl_mask_target
    return None if weight is None else KLRegularizer(weight=weight, mask_target=mask_target)


def needs_original_stream(config: RunConfig) -> bool:
    """Whether a run's training needs the original's memories: interwoven, or held to them."""
    held = config.trainer.kl_beta is not None
    return config.method.trainable and (config.method.stream == "interwoven" or held)


def format_trainable(counts: dict[str, int]) -> str:
    """How a run says what it trains, before and after it begins."""
    adapter, gate = counts["adapter"], counts["gate"]
    return f"trainable parameters: {adapter + gate:,} (adapter {adapter:,}, gate {gate:,})"
