"""What a run's model is put together from, as keyword arguments for `imsm.assemble`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from imsm.builders import locate, takes_modules
from imsm.siamese.closeness import Closeness

if TYPE_CHECKING:
    from imsm.adapters.adapter import Adapter
    from imsm.config import RunConfig


def adapter_of(config: RunConfig) -> Adapter:
    """The PEFT method, on the backbone's modules if it changes any."""
    build = locate(config.peft.target)
    arguments = config.peft.arguments()
    if takes_modules(build):
        arguments["target_modules"] = config.peft.target_modules(config.backbone)
    adapter: Adapter = build(**arguments)
    return adapter


def parts_of(config: RunConfig) -> dict[str, Any]:
    """The arguments of `assemble` besides the adapter."""
    gate = None
    if config.method.stream == "interwoven":
        gate = {"_target_": config.gate.target, **config.gate.arguments()}
    return {
        "backbone": config.backbone.model_dump(
            include={"path", "revision", "dtype", "attn_implementation", "local"}
        ),
        "gate": gate,
        "pooling": config.gate.pooling,
        "stream": config.method.stream,
        "seed": config.seed,
    }


def closeness_of(config: RunConfig) -> Closeness | None:
    """How hard the training is held to the original; None: not at all."""
    weight, mask_target = config.trainer.kl_weight, config.trainer.kl_mask_target
    return None if weight is None else Closeness(weight=weight, mask_target=mask_target)


def reads_original(config: RunConfig) -> bool:
    """Whether a run's training needs the original's memories: interwoven, or held to them."""
    held = config.trainer.kl_weight is not None
    return config.method.trained and (config.method.stream == "interwoven" or held)


def trainable_line(counts: dict[str, int]) -> str:
    """How a run says what it trains, before and after it begins."""
    adapter, gate = counts["adapter"], counts["gate"]
    return f"trainable parameters: {adapter + gate:,} (adapter {adapter:,}, gate {gate:,})"
