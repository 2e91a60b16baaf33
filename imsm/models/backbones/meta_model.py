"""Build the architecture of a backbone on the "meta" device: no download, no memory."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import CONFIG_MAPPING, AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from imsm.models.backbones.download import cached_folder
from imsm.models.backbones.folder_check import check_decoder, check_json_files
from imsm.models.backbones.loading import (
    MINIATURE,
    check_attention,
    disable_dropout,
    register_custom_models,
    resolve_path,
)
from imsm.utils.errors import UserError, first_line
from imsm.utils.messages import did_you_mean
from imsm.utils.options import closest_match


def find_config(
    *, path: str, revision: str | None, architecture: Mapping[str, Any] | None
) -> tuple[PretrainedConfig, Path | None]:
    """Return the configuration of a backbone and the file it was read from, without network access.

    Looks for config.json in a local folder, then in the local Hub cache, then uses ``architecture``, the
    keys of config.json that determine the shape of the model.

    Raises:
        LookupError: none of the three is available.
        UserError: the configuration does not describe a model.
    """
    # Without the resolver, which may take minutes: a plan must not create files.
    folder = Path(resolve_path(path)) if path == MINIATURE else Path(path)
    if not folder.is_dir():
        cached = cached_folder(path, revision)
        if cached is None:
            if architecture is None:
                raise LookupError(
                    f"backbone.name_or_path={path}: its shape is unknown without its config.json; download that file "
                    f"(hf download {path} config.json --local-dir FOLDER) and set backbone.name_or_path=FOLDER, or "
                    "add its keys to the backbone's yaml (architecture: {model_type: ..., ...})"
                )
            return _config_from_keys(architecture), None
        folder = cached
    register_custom_models()
    check_json_files(str(folder))
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except (OSError, ValueError, KeyError, TypeError, StrictDataclassError) as error:
        raise UserError(f"{folder / 'config.json'}: does not describe a model ({first_line(error)})") from error
    check_attention(config)
    check_decoder(config, path)
    return config, folder / "config.json"


def build_meta_model(configuration: PretrainedConfig, *, dtype: str) -> PreTrainedModel:
    """Build a frozen causal language model with all tensors on "meta".

    Raises:
        UserError: transformers has no such language model.
    """
    try:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(
                configuration, dtype=getattr(torch, dtype), trust_remote_code=False
            )
    except (ValueError, TypeError, AttributeError, RuntimeError) as error:
        raise UserError(f"backbone.architecture: transformers cannot build it ({first_line(error)})") from error
    # Tied weights must be one tensor, or the head would be counted twice.
    model.tie_weights()
    disable_dropout(model)
    return cast(PreTrainedModel, model.requires_grad_(False).eval())


def _config_from_keys(architecture: Mapping[str, Any]) -> PretrainedConfig:
    """Build a configuration; reject unknown keys."""
    keys = dict(architecture)
    model_type = str(keys.pop("model_type"))
    if model_type not in CONFIG_MAPPING:
        register_custom_models()
    try:
        default = AutoConfig.for_model(model_type)
    except ValueError as error:
        raise UserError(
            f"backbone.architecture.model_type={model_type}: the installed transformers has no such model"
        ) from error
    # transformers stores unknown keys without an error: a typo would plan the default shape.
    known = {*default.to_dict(), *default.attribute_map}
    for key, value in keys.items():
        if key not in known:
            match = closest_match(key, known)
            hint = did_you_mean(match and f"backbone.architecture.{match}={value}")
            raise UserError(f"backbone.architecture.{key}={value}: no key of {model_type}{hint}")
    try:
        return AutoConfig.for_model(model_type, **keys)
    except (StrictDataclassError, ValueError, TypeError) as error:
        raise UserError(f"backbone.architecture: {' '.join(str(error).split())}") from error
