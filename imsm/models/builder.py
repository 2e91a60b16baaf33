"""Build a siamese model with a new or a finished adapter and a new gate.

Saved models are loaded by `SiameseForCausalLM.from_pretrained`; both use `SiameseForCausalLM.from_parts`.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from imsm.models.adapters.base import AdapterSpec, attach_adapter, freeze_adapter
from imsm.models.adapters.unsupported import reject_unsupported
from imsm.models.backbones.loading import load_backbone
from imsm.models.siamese.adapter_check import BackboneSnapshot, snapshot
from imsm.models.siamese.backbone_check import BackboneCapabilities, check_backbone
from imsm.models.siamese.config import SiameseConfig
from imsm.models.siamese.gate import build_gate
from imsm.models.siamese.model import SiameseForCausalLM
from imsm.models.siamese.serialization import load_adapter


def build_model(
    *,
    backbone: dict[str, Any],
    adapter: AdapterSpec | Path | None,
    device: torch.device | None = None,
    load: Callable[..., PreTrainedModel] = load_backbone,
    **options: Any,
) -> SiameseForCausalLM:
    """Load a backbone and build a siamese model around it, its adapter verified.

    ``load`` is a function with the arguments of `load_backbone`, which ``backbone`` holds.
    ``options`` are ``gate``, ``pooling``, ``skip_threshold``, ``stream`` and ``seed`` of `wrap_backbone`.

    Raises:
        UserError: the backbone is not available or unsuitable, or the adapter is unsupported or does not fit it.
    """
    if isinstance(adapter, AdapterSpec):
        # before the weights are loaded, which can take minutes
        reject_unsupported(adapter.config)
    plain = load(**backbone)
    if device is not None:
        plain.to(device)  # type: ignore[arg-type]
    return wrap_backbone(plain, backbone=backbone, adapter=adapter, verify_adapter=True, **options)


def wrap_backbone(
    plain: PreTrainedModel,
    *,
    backbone: dict[str, Any] | None,
    adapter: AdapterSpec | Path | None,
    gate: dict[str, Any] | None,
    pooling: str,
    stream: str,
    seed: int,
    skip_threshold: float | None = None,
    verify_adapter: bool = False,
) -> SiameseForCausalLM:
    """Build a siamese model around a loaded backbone, which may be on the meta device.

    ``backbone`` holds the arguments of `load_backbone` that reproduce ``plain``; a model without them cannot be saved.
    ``adapter`` is the
    PEFT method of a new adapter; the folder of a finished one, which stays frozen; or None for the
    original model. ``gate`` holds ``_target_`` and arguments; it is None for the original model and
    plain PEFT; ``skip_threshold`` is described in `imsm.models.siamese.skip`.
    With ``verify_adapter`` the adapter is checked (`imsm.models.siamese.adapter_check`).

    Raises:
        UserError: the backbone is unsuitable, or the adapter does not fit it.
    """
    # a plan builds the model on the meta device, where no values exist to check
    capabilities = BackboneCapabilities(supports_cache=True, supports_inner_padding=False)
    if plain.device.type != "meta":
        capabilities = check_backbone(plain)
    adapted: nn.Module = plain
    before: BackboneSnapshot | None = None
    if isinstance(adapter, Path):
        adapted, before = load_adapter(plain, adapter, trainable=False)
    elif adapter is not None:
        before = snapshot(plain, adapter.config) if verify_adapter else None
        torch.manual_seed(seed)
        adapted = attach_adapter(adapter, plain)
    config = SiameseConfig(
        text_config=plain.config.get_text_config(decoder=True),
        backbone=backbone,
        gate=gate,
        pooling=pooling,
        stream=stream,
        skip_threshold=skip_threshold,
        **vars(capabilities),
    )
    gate_module = None
    if gate is not None:
        # seeded again: the gate's values do not depend on how many random numbers the adapter draws
        torch.manual_seed(seed)
        gate_module = build_gate(hidden_size=config.hidden_size, **gate)
    model = SiameseForCausalLM.from_parts(config, adapted, gate_module, before)
    if isinstance(adapter, Path):
        # after the check in from_parts: train() of a frozen adapter has no effect
        freeze_adapter(model.adapted)
    return model


def count_trainable(model: SiameseForCausalLM) -> dict[str, int]:
    """Return the number of trainable parameters of the adapter and of the gate."""
    gate = set(model.gate.parameters()) if model.gate is not None else set()
    trainable = [p for p in model.parameters() if p.requires_grad]
    return {
        "adapter": sum(p.numel() for p in trainable if p not in gate),
        "gate": sum(p.numel() for p in trainable if p in gate),
    }
