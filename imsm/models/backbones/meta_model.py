"""A backbone without its weights (on torch's "meta" device): what it is made of, to be counted.

Nothing is downloaded and no memory is taken: an 8B model is there in a moment.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from imsm.models.backbones.loading import MINIATURE, disable_dropout, register_custom_models, resolve_path
from imsm.utils.errors import UserError
from imsm.utils.options import closest_match

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel


def find_config(
    *, path: str, revision: str | None, architecture: Mapping[str, Any] | None
) -> tuple[PretrainedConfig, Path | None]:
    """What a backbone is made of, and the file that says so; no network is used.

    A local folder's config.json goes first, then the one in the hub's local cache, then
    ``architecture``.

    Args:
        path: a hub id, a local folder, or "imsm:miniature".
        revision: of the hub id.
        architecture: the keys of a config.json that decide the model's shape, or None.

    Raises:
        UserError: none of the three is there, or it describes no model.
    """
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoConfig

    folder = Path(resolve_path(path)) if path == MINIATURE else Path(path)
    if not folder.is_dir():
        cached = _cached_configuration(path, revision)
        if cached is None:
            if architecture is None:
                raise LookupError(_unknown(path))
            return _from_keys(architecture), None
        folder = cached
    register_custom_models()
    try:
        found = AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except (OSError, ValueError, KeyError, TypeError, StrictDataclassError) as error:
        first = str(error).strip().splitlines()[0]
        raise UserError(f"{folder / 'config.json'}: describes no model ({first})") from error
    return found, folder / "config.json"


def build_meta_model(configuration: PretrainedConfig, *, dtype: str) -> PreTrainedModel:
    """The causal language model of a configuration, frozen, all its tensors on "meta".

    Raises:
        UserError: transformers has no such language model.
    """
    import torch
    from transformers import AutoModelForCausalLM

    try:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(
                configuration, dtype=getattr(torch, dtype), trust_remote_code=False
            )
    except (ValueError, TypeError, AttributeError, RuntimeError) as error:
        first = str(error).strip().splitlines()[0]
        raise UserError(f"backbone.architecture: transformers makes no language model of it ({first})") from error
    model.tie_weights()
    disable_dropout(model)
    return model.requires_grad_(False).eval()


def _from_keys(architecture: Mapping[str, Any]) -> PretrainedConfig:
    """The configuration that some keys give; a misspelt one would count as its default."""
    from huggingface_hub.errors import StrictDataclassError
    from transformers import CONFIG_MAPPING, AutoConfig

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
    known = {*default.to_dict(), *default.attribute_map}
    for key, value in keys.items():
        if key not in known:
            guess = closest_match(key, known)
            hint = f"; did you mean backbone.architecture.{guess}={value}?" if guess else ""
            raise UserError(f"backbone.architecture.{key}={value}: no key of {model_type}{hint}")
    try:
        return AutoConfig.for_model(model_type, **keys)
    except (StrictDataclassError, ValueError, TypeError) as error:
        raise UserError(f"backbone.architecture: {' '.join(str(error).split())}") from error


def _cached_configuration(path: str, revision: str | None) -> Path | None:
    """The folder of a hub id's config.json in the hub's local cache."""
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(path, "config.json", revision=revision)
    return Path(found).parent if isinstance(found, str) else None


def _unknown(path: str) -> str:
    return (
        f"backbone.name_or_path={path}: its sizes are not known without its config.json. Fetch that alone "
        f"(hf download {path} config.json --local-dir FOLDER) and give backbone.name_or_path=FOLDER, or "
        "write its keys into the backbone's yaml (architecture: {model_type: ..., ...})"
    )
