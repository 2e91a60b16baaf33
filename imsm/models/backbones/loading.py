"""Loading a backbone and its tokenizer: a hub id, a local folder, or the shipped miniature."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from pickle import UnpicklingError
from typing import TYPE_CHECKING, Any, cast

from imsm.utils.errors import UserError

if TYPE_CHECKING:
    from torch.nn import Module
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

MINIATURE = "imsm:miniature"
PORTS = ("imsm.models.backbones.chatglm3.modeling",)
"""Modules that bring a model which transformers lacks; importing one registers it."""
_RANDOM = ("drop", "jitter")
"""What the rates of random draws are called: attention_dropout, layerdrop, router_jitter_noise."""


def resolve_path(name_or_path: str, *, local_resolver: str | None = None) -> str:
    """The folder or hub id that ``path`` stands for.

    Args:
        name_or_path: a hub id, a local folder, or "imsm:miniature".
        local_resolver: a dotted function that is given ``path`` and returns a local folder that stands in
            for it (an opt-in extra), or None.
    """
    if name_or_path == MINIATURE:
        return str(Path(__file__).parent / "miniature" / "model")
    if local_resolver is not None:
        folder = _stand_in(local_resolver)(name_or_path)
        if folder is not None:
            return str(folder)
    return name_or_path


def _stand_in(local: str) -> Callable[[str], Path | None]:
    """The function that ``local`` names.

    A model's folder carries this name, and folders come from other people: only functions that
    imsm.models.backbones defines are called.

    Raises:
        UserError: any other name.
    """
    module_name, _, name = local.rpartition(".")
    try:
        if not module_name.startswith("imsm.models.backbones."):
            raise ImportError("not a module of imsm.models.backbones")
        function = getattr(importlib.import_module(module_name), name)
        if getattr(function, "__module__", None) != module_name:
            raise ImportError(f"{module_name} does not define it")
    except (ImportError, AttributeError) as error:
        raise UserError(
            f"backbone.local_resolver={local}: {error}; it names a function of imsm.models.backbones, or is null"
        ) from error
    return function


def register_custom_models() -> None:
    """Let transformers' auto classes find the models that imsm brings itself (`PORTS`)."""
    for module in PORTS:
        importlib.import_module(module)


def load_backbone(
    *,
    name_or_path: str,
    revision: str | None = None,
    dtype: str = "float32",
    attn_implementation: str | None = None,
    local_resolver: str | None = None,
) -> PreTrainedModel:
    """A causal language model in evaluation mode, frozen, without any dropout of its own.

    Two passes of a frozen model in training mode differ if it has dropout; gradient checkpointing
    needs training mode. So the mode stays free and the dropout goes.

    Raises:
        UserError: the weights cannot be had, or not all of them; the message says what was
            looked for.
    """
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM

    register_custom_models()
    source = resolve_path(name_or_path, local_resolver=local_resolver)
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            source,
            revision=revision,
            dtype=dtype,
            attn_implementation=attn_implementation,
            trust_remote_code=False,
            output_loading_info=True,
        )
    except UnpicklingError as error:
        raise UserError(
            f"backbone {source}: its .bin files hold more than tensors and are not read; give a "
            "folder with the model's .safetensors files"
        ) from error
    except (OSError, RuntimeError, ValueError, ImportError, SafetensorError) as error:
        raise UserError(load_error_message(source, error)) from error
    model, found = loaded
    if missing := sorted(found["missing_keys"]):  # transformers fills them with random values
        raise UserError(
            f"backbone {source}: its files lack {missing[0]} and {len(missing) - 1} more weights "
            f"of {type(model).__name__}; download them anew"
        )
    disable_dropout(model)
    model.requires_grad_(False)
    return cast("PreTrainedModel", model.eval())


def load_tokenizer(
    *, name_or_path: str, revision: str | None = None, local_resolver: str | None = None
) -> PreTrainedTokenizerBase:
    """The backbone's tokenizer, padding on the left, with a padding token.

    Raises:
        UserError: the tokenizer cannot be had, or has no end-of-text token.
    """
    from transformers import AutoTokenizer

    register_custom_models()
    source = resolve_path(name_or_path, local_resolver=local_resolver)
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            source, revision=revision, trust_remote_code=False, padding_side="left"
        )
    except (OSError, ValueError) as error:
        raise UserError(load_error_message(source, error)) from error
    if tokenizer.eos_token_id is None:
        raise UserError(f"backbone {source}: its tokenizer has no end-of-text token")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def disable_dropout(model: PreTrainedModel) -> None:
    """Set every dropout of a frozen backbone to 0 (before an adapter brings its own).

    Noise on a router's input and skipped layers too. Some layers (Falcon's, GPT-J's) ask their
    configuration in every pass. What is not found here, `imsm.models.siamese.backbone_check` refuses.
    """
    import torch

    asked = {id(each): each for module in model.modules() for each in _told(module)}
    for holder in asked.values():
        if isinstance(holder, torch.nn.modules.dropout._DropoutNd):
            holder.p = 0.0
        for name, value in vars(holder).items():
            if isinstance(value, float) and any(word in name for word in _RANDOM):
                setattr(holder, name, 0.0)


def _told(module: Module) -> list[Module | PretrainedConfig]:
    """Whatever may hold a rate: the module, and the configuration that it was given."""
    from transformers import PretrainedConfig

    config = getattr(module, "config", None)
    return [module, config] if isinstance(config, PretrainedConfig) else [module]


def load_error_message(source: str, error: Exception) -> str:
    """Why a backbone cannot be had, in one line with the way out."""
    from huggingface_hub import is_offline_mode

    first_line = (str(error).strip() or type(error).__name__).splitlines()[0]
    if is_offline_mode() and not Path(source).is_dir():
        return (
            f"backbone {source}: is not whole in the hub's cache of this machine, and "
            "HF_HUB_OFFLINE is set; give the same command with mode=download where there is a "
            "network"
        )
    return (
        f"backbone {source}: cannot be loaded ({first_line}). Give a local folder or a hub id "
        "(backbone.name_or_path=...); a gated model needs `hf auth login` and its licence accepted"
    )
