"""Make a trainable siamese model in Python, as PEFT's `get_peft_model` makes a PEFT model."""

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig, PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from transformers import PreTrainedModel

from imsm.models.adapters.base import AdapterSpec
from imsm.models.adapters.unsupported import reject_unsupported
from imsm.models.backbones.loading import disable_dropout, load_backbone
from imsm.models.builder import wrap_backbone
from imsm.models.siamese.config import SiameseConfig
from imsm.models.siamese.model import SiameseForCausalLM
from imsm.models.siamese.query_pooling import POOLINGS
from imsm.utils.errors import UserError
from imsm.utils.options import load_option

__all__ = ["SiameseConfig", "SiameseForCausalLM", "get_siamese_model"]

Gate = str | Mapping[str, Any] | None


def get_siamese_model(
    model: PreTrainedModel | str | Path,
    peft_config: PeftConfig,
    *,
    gate: Gate = "query",
    pooling: str | None = None,
    seed: int = 0,
) -> SiameseForCausalLM:
    """Add an adapter and a gate to a language model; only these two are trainable.

    The model in memory is changed in place: it is frozen, its dropout is set to 0, and the adapter's layers are
    added. It is not saved with the result, which refers to it by its path or Hub id (`model.config.name_or_path`).

    Args:
        model: a causal language model of transformers, or its path or Hub id.
        peft_config: configuration of the adapter, e.g. `peft.LoraConfig`; `docs/compatibility.md` lists the methods.
        gate: name of an option in `conf/gate`; or a dict that overrides its arguments ({"name": "query", "rank": 16};
            "query" without a name); or a dict with the class ``_target_`` and all arguments; or None for the adapter
            without interweaving.
        pooling: pooling of the query states: "mean", "max" or "last"; default: the option's, "mean".
        seed: seed of the initial values of adapter and gate; the global random state is unchanged.

    Raises:
        UserError: the model or the adapter method is unsuitable, or an unknown gate or pooling.
    """
    config = _causal_config(peft_config)
    arguments, default_pooling = _gate_arguments(gate)
    if pooling not in (None, *POOLINGS):
        raise UserError(f"pooling={pooling!r}: unknown; choose from {', '.join(POOLINGS)}")
    backbone = _load(model)
    devices = [backbone.device] if backbone.device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        return wrap_backbone(
            backbone,
            backbone=_backbone_arguments(backbone),
            adapter=AdapterSpec(config),
            gate=arguments,
            pooling=pooling or default_pooling,
            stream="tuned" if arguments is None else "interwoven",
            seed=seed,
            verify_adapter=True,
        )


def _causal_config(config: PeftConfig) -> PeftConfig:
    """Return a copy of the adapter's configuration with its task type."""
    if config.peft_type == "ADALORA":
        raise UserError(
            "peft_config=AdaLoraConfig: needs calls in the training loop that Trainer does not make; train it with "
            "`imsm run peft=adalora`, or choose LoraConfig"
        )
    reject_unsupported(config)
    config = copy.deepcopy(config)
    if config.task_type not in (None, "CAUSAL_LM"):
        raise UserError(f"peft_config.task_type={config.task_type}: must be CAUSAL_LM, or None")
    config.task_type = "CAUSAL_LM"
    return config


def _load(model: PreTrainedModel | str | Path) -> PreTrainedModel:
    """Return the model, frozen, in eval mode and without dropout."""
    if isinstance(model, str | Path):
        loaded = load_backbone(name_or_path=str(model), dtype="auto")
        # the given name, which for the miniature is not a folder
        loaded.config.name_or_path = str(model)
        return loaded
    if not isinstance(model, PreTrainedModel) or isinstance(model, SiameseForCausalLM):
        kind = "PeftModel" if isinstance(model, PeftModel) else type(model).__name__
        raise UserError(f"model={kind}: must be a causal language model of transformers without an adapter")
    if any(isinstance(module, BaseTunerLayer) for module in model.modules()):
        raise UserError(
            f"model={type(model).__name__}: already has an adapter; remove it with unload(), or load it again"
        )
    disable_dropout(model)
    model.requires_grad_(False).eval()
    return model


def _backbone_arguments(backbone: PreTrainedModel) -> dict[str, Any] | None:
    """Return the arguments of `load_backbone` that reproduce ``backbone``; None if it has no path."""
    config = backbone.config
    if not config.name_or_path:
        return None
    return {
        "name_or_path": config.name_or_path,
        "revision": getattr(config, "_commit_hash", None),
        "dtype": str(backbone.dtype).removeprefix("torch."),
        "attn_implementation": config._attn_implementation,
    }


def _gate_arguments(gate: Gate) -> tuple[dict[str, Any] | None, str]:
    """Return ``_target_`` and the arguments of the gate, and its pooling."""
    if gate is None:
        return None, "mean"
    given = {"name": gate} if isinstance(gate, str) else dict(gate)
    if "_target_" not in given:
        option = load_option("gate", given.get("name", "query"))
        # interpolations refer to a run's recipe; the gate's own default applies here
        values = {key: value for key, value in option.items() if not str(value).startswith("${")}
        # settings of the model, not of the gate: `model.skip_threshold`
        values = {key: value for key, value in values.items() if key not in ("skip", "skip_threshold")}
        given = {**values, **given}
    given.pop("name", None)
    return given, given.pop("pooling", "mean")
