"""Build a siamese model with a new or a finished adapter and a new gate.

Saved models are loaded by `SiameseForCausalLM.from_pretrained`; both use
`SiameseForCausalLM.from_parts`.
"""

from __future__ import annotations

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
    *, backbone: dict[str, Any], adapter: AdapterSpec | Path | None, device: torch.device | None = None, **options: Any
) -> SiameseForCausalLM:
    """Load a backbone and build a siamese model around it, its adapter verified.

    Args:
        backbone: arguments of `load_backbone`.
        adapter: see `wrap_backbone`.
        device: device of the model; None for the one the backbone is loaded to.
        options: ``gate``, ``pooling``, ``stream`` and ``seed`` of `wrap_backbone`.

    Raises:
        UserError: the backbone is not available or unsuitable, or the adapter is unsupported or
            does not fit it.
    """
    if isinstance(adapter, AdapterSpec):
        reject_unsupported(adapter.config)  # before the weights are loaded
    plain = load_backbone(**backbone)
    if device is not None:
        plain.to(device)  # type: ignore[arg-type]
    return wrap_backbone(plain, backbone=backbone, adapter=adapter, verify_adapter=True, **options)


def wrap_backbone(
    plain: PreTrainedModel,
    *,
    backbone: dict[str, Any],
    adapter: AdapterSpec | Path | None,
    gate: dict[str, Any] | None,
    pooling: str,
    stream: str,
    seed: int,
    verify_adapter: bool = False,
) -> SiameseForCausalLM:
    """Build a siamese model around a loaded backbone, which may be on the meta device.

    Args:
        plain: the backbone.
        backbone: arguments of `load_backbone` that reproduce it.
        adapter: the PEFT method of a new adapter; the folder of a finished one, which stays frozen;
            or None for the original model.
        gate: ``_target_`` and arguments; None for the original model and plain PEFT.
        pooling: pooling of the query states.
        stream: the selected stream.
        seed: seed of the initial values.
        verify_adapter: whether to check the adapter on the model
            (`imsm.models.siamese.adapter_check`).

    Raises:
        UserError: the backbone is unsuitable, or the adapter does not fit it.
    """
    on_meta = plain.device.type == "meta"  # no values to check
    capabilities = (
        BackboneCapabilities(supports_cache=True, supports_inner_padding=False) if on_meta else check_backbone(plain)
    )
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
        supports_cache=capabilities.supports_cache,
        supports_inner_padding=capabilities.supports_inner_padding,
    )
    gate_module = None
    if gate is not None:
        torch.manual_seed(seed)  # again, so that PEFT and IMSM start from the same adapter
        gate_module = build_gate(hidden_size=config.hidden_size, **gate)
    model = SiameseForCausalLM.from_parts(config, adapted, gate_module, before)
    if isinstance(adapter, Path):
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
