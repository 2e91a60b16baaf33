"""A run's model without memory for its weights, to count them."""

from pathlib import Path

import torch

from imsm.config.schema import RunConfig
from imsm.models.adapters.base import freeze_adapter
from imsm.models.backbones.folder_check import missing_tokenizer
from imsm.models.backbones.meta_model import build_meta_model, find_config
from imsm.models.builder import wrap_backbone
from imsm.models.siamese.model import SiameseForCausalLM
from imsm.pipeline.model import build_adapter, build_kl_regularizer, model_kwargs
from imsm.utils.errors import UserError
from imsm.utils.options import load_option


def build_plan_model(config: RunConfig) -> tuple[SiameseForCausalLM | None, list[str]]:
    """Build the run's model on the meta device; return it with notes on its parameter counts.

    The model is None if the architecture is unknown, or if the adapter is initialized from weights.
    """
    backbone = config.backbone
    try:
        architecture, file = find_config(
            path=backbone.name_or_path, revision=backbone.revision, architecture=backbone.architecture
        )
    except LookupError as error:
        return None, [str(error)]
    # a folder with nothing but config.json is enough for a plan
    has_weights = any(Path(backbone.name_or_path).glob("*.safetensors"))
    if has_weights and (problem := missing_tokenizer(backbone.name_or_path)):
        raise UserError(problem)
    plain = build_meta_model(architecture, dtype=backbone.dtype)
    adapter = build_adapter(config) if config.method.trainable else None
    try:
        with torch.device("meta"):
            model = wrap_backbone(plain, adapter=adapter, **model_kwargs(config))
    except (UserError, RuntimeError) as error:
        # a RuntimeError comes from an operation that meta tensors do not support
        # build errors are wrapped in a UserError, whose cause tells the two apart
        if not isinstance(error.__cause__ or error, RuntimeError):
            raise
        reason = str(error).strip().splitlines()[0]
        return None, [f"peft={config.peft.name}: cannot be counted without the weights ({reason})"]
    if config.frozen_adapter is not None:
        freeze_adapter(model.adapted)
    model.kl_regularizer = build_kl_regularizer(config)
    # adapters with dropout save its masks, which count as activations, in training mode only
    model.train(config.method.trainable)
    return model, [] if file is not None else _assumed_architecture(config)


def _assumed_architecture(config: RunConfig) -> list[str]:
    """Note that a custom Hub id is assumed to have the architecture in the yaml."""
    backbone = config.backbone
    config_dir = Path(config.config_dir) if config.config_dir else None
    default = load_option("backbone", backbone.name, config_dir=config_dir).get("name_or_path")
    if backbone.name_or_path == default:
        return []
    return [
        f"counted with the architecture of backbone={backbone.name} ({default}), because the config.json of "
        f"{backbone.name_or_path} is not available locally"
    ]
