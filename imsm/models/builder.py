"""Putting a siamese model together: backbone, adapter, gate."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from imsm.models.adapters.adapter_check import check_adapter, snapshot
from imsm.models.adapters.base import AdapterSpec, attach_adapter, freeze_adapter
from imsm.models.adapters.unsupported import reject_unsupported
from imsm.models.backbones.loading import load_backbone
from imsm.models.serialization import build_gate, load_adapter
from imsm.models.siamese.backbone_check import BackboneCapabilities, check_backbone
from imsm.models.siamese.config import SiameseConfig
from imsm.models.siamese.model import SiameseForCausalLM

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel


def build_model(
    *,
    backbone: dict[str, Any],
    adapter: AdapterSpec | Path | None,
    gate: dict[str, Any] | None,
    pooling: str,
    stream: str,
    seed: int,
    device: torch.device | None = None,
) -> SiameseForCausalLM:
    """A siamese model with the backbone's weights, an adapter and a new gate.

    Args:
        backbone: the arguments of `load_backbone`.
        adapter: the PEFT method of a new adapter; or the folder of a finished one, which stays as
            it is; None for the original model.
        gate: ``_target_`` and arguments; None for the original model and plain PEFT.
        pooling: of the query memories.
        stream: who answers.
        seed: of the initial values.
        device: where it goes, and is probed; None: where the backbone is loaded to.

    Raises:
        UserError: the backbone cannot be had or interwoven, or the adapter cannot be loaded, does
            not fit it, or is refused (`imsm.models.adapters.unsupported`, `imsm.models.adapters.adapter_check`).
    """
    if isinstance(adapter, AdapterSpec):
        reject_unsupported(adapter.config)
    plain = load_backbone(**backbone)
    if device is not None:
        plain.to(device)  # type: ignore[arg-type]
    fitness = check_backbone(plain)
    adapted: nn.Module = plain
    before = None
    if isinstance(adapter, Path):
        adapted, before = load_adapter(plain, adapter, trainable=False)
    elif adapter is not None:
        before = snapshot(plain, adapter.config)
        adapted = _with_new_adapter(plain, adapter, seed=seed)
    model = _wrap(
        adapted, plain, backbone=backbone, gate=gate, pooling=pooling, stream=stream, seed=seed, fitness=fitness
    )
    model.to(plain.device)  # type: ignore[arg-type]
    if before is not None:
        check_adapter(model, before)
    if isinstance(adapter, Path):
        freeze_adapter(model.adapted)
    return model


def wrap_backbone(
    plain: PreTrainedModel,
    *,
    backbone: dict[str, Any],
    adapter: AdapterSpec | None,
    gate: dict[str, Any] | None,
    pooling: str,
    stream: str,
    seed: int,
) -> SiameseForCausalLM:
    """A siamese model around a backbone that is there, be it without values (on "meta").

    Adapter and gate each start from ``seed``: PEFT and IMSM begin with the same adapter.

    Args:
        plain: the backbone.
        backbone: where it came from, the arguments of `load_backbone`.
        adapter: as of `assemble`, like the rest.
        gate: likewise.
        pooling: likewise.
        stream: likewise.
        seed: likewise.

    Raises:
        UserError: the backbone cannot be interwoven, or the adapter does not fit it.
    """
    values = plain.device.type != "meta"
    fitness = (
        check_backbone(plain) if values else BackboneCapabilities(supports_cache=True, supports_inner_padding=False)
    )
    return _wrap(
        plain if adapter is None else _with_new_adapter(plain, adapter, seed=seed),
        plain,
        backbone=backbone,
        gate=gate,
        pooling=pooling,
        stream=stream,
        seed=seed,
        fitness=fitness,
    )


def _with_new_adapter(plain: PreTrainedModel, adapter: AdapterSpec, *, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return attach_adapter(adapter, plain)


def _wrap(
    adapted: nn.Module,
    plain: PreTrainedModel,
    *,
    backbone: dict[str, Any],
    gate: dict[str, Any] | None,
    pooling: str,
    stream: str,
    seed: int,
    fitness: BackboneCapabilities,
) -> SiameseForCausalLM:
    """The model around an adapted backbone, with a new gate."""
    config = SiameseConfig(
        text_config=plain.config.get_text_config(decoder=True),
        backbone=backbone,
        gate=gate,
        pooling=pooling,
        stream=stream,
        cached=fitness.supports_cache,
        padded_inside=fitness.supports_inner_padding,
    )
    built = None
    if gate is not None:
        torch.manual_seed(seed)
        built = build_gate(hidden_size=config.hidden_size, **gate)
    return SiameseForCausalLM(config, adapted, built)


def count_trainable(model: SiameseForCausalLM) -> dict[str, int]:
    """Trainable parameters of adapter and gate."""
    gate = set(model.gate.parameters()) if model.gate is not None else set()
    trainable = [p for p in model.parameters() if p.requires_grad]
    return {
        "adapter": sum(p.numel() for p in trainable if p not in gate),
        "gate": sum(p.numel() for p in trainable if p in gate),
    }
