"""Load a backbone and its tokenizer from the Hub, a local folder or the shipped miniature."""

import importlib
import importlib.util
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, cast

import torch
from huggingface_hub import is_offline_mode
from huggingface_hub.errors import StrictDataclassError
from peft.utils import CONFIG_NAME as ADAPTER_CONFIG
from safetensors import SafetensorError
from torch.nn.modules.dropout import _DropoutNd
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from imsm.models.backbones.folder_check import check_decoder, check_json_files, missing_tokenizer
from imsm.utils.errors import UserError, first_line
from imsm.utils.trust import RESOLVERS, import_trusted

MINIATURE = "imsm:miniature"
CUSTOM_MODELS = ("imsm.models.backbones.chatglm3.modeling",)
"""Modules that register a model with transformers when imported."""
LOAD_ERRORS = (
    *(AttributeError, ImportError, LookupError, OSError, RuntimeError, SafetensorError, StrictDataclassError),
    *(TypeError, ValueError),
)
QUANTIZATIONS = ("nf4",)
"""Values of ``quantization``."""
_INSTALL_QUANTIZATION = "pip install -c constraints.txt -e '.[quantization]'"
_RANDOM_RATES = ("drop", "jitter")
"""Parts of the names of rates: attention_dropout, layerdrop, router_jitter_noise."""


def resolve_path(name_or_path: str, *, local_resolver: str | None = None) -> str:
    """Return the local folder or the Hub id to load.

    ``name_or_path`` is a Hub id, a local folder, or "imsm:miniature"; ``local_resolver`` the dotted name of a
    trusted function (`imsm.utils.trust`) that maps it to a local folder that replaces it, or to None.

    Raises:
        UserError: ``local_resolver`` is not trusted.
    """
    if name_or_path == MINIATURE:
        return str(Path(__file__).parent / "miniature" / "model")
    folder = _call_resolver(local_resolver, name_or_path) if local_resolver is not None else None
    return name_or_path if folder is None else str(folder)


def _call_resolver(local_resolver: str, name_or_path: str) -> Path | None:
    function = import_trusted(local_resolver, within=RESOLVERS, key="backbone.local_resolver")
    try:
        return cast("Path | None", function(name_or_path))
    except (AttributeError, TypeError) as error:  # a function for other arguments
        raise UserError(
            f"backbone.local_resolver={local_resolver}: does not map a name to a folder ({error}); set null"
        ) from error


def register_custom_models() -> None:
    """Register the models that imsm implements itself (`CUSTOM_MODELS`) with transformers."""
    for module in CUSTOM_MODELS:
        importlib.import_module(module)


def check_attention_name(name: Any) -> None:
    """Raise a UserError if ``name`` is not an attention of transformers itself: kernels of the Hub are code."""
    for each in name.values() if isinstance(name, dict) else (name,):
        if each is not None and not (isinstance(each, str) and each.isidentifier()):
            raise UserError(
                f"backbone.attn_implementation={each}: must be an attention of transformers (eager, sdpa, "
                "flash_attention_2, ...); kernels of the Hub are code, which is not loaded"
            )


def check_attention(config: PretrainedConfig) -> None:
    """Check the attention that a configuration and those inside it name; see `check_attention_name`."""
    # of the finished configuration: config.json can name it under several keys
    check_attention_name(config._attn_implementation)
    for name in config.sub_configs:
        if isinstance(nested := getattr(config, name, None), PretrainedConfig):
            check_attention(nested)


def check_source(name_or_path: str, *, local_resolver: str | None, attn_implementation: str | None) -> str:
    """Return the local folder or the Hub id to load, after the checks that need no weights.

    Raises:
        UserError: it is the folder of an adapter, its JSON files are damaged, or an argument is invalid.
    """
    register_custom_models()
    source = resolve_path(name_or_path, local_resolver=local_resolver)
    check_attention_name(attn_implementation)
    if (Path(source) / ADAPTER_CONFIG).is_file():
        # transformers would load its base model and attach the adapter, without the checks of `load_adapter`
        raise UserError(f"backbone {source}: is the folder of an adapter ({ADAPTER_CONFIG}); give its base model")
    check_json_files(source)
    return source


def load_backbone(
    *,
    name_or_path: str,
    revision: str | None = None,
    dtype: str = "float32",
    attn_implementation: str | None = None,
    local_resolver: str | None = None,
    quantization: str | None = None,
) -> PreTrainedModel:
    """Load a causal language model, frozen, in eval mode and without dropout.

    With ``quantization`` "nf4", bitsandbytes stores the weights of the linear layers, except the head, in 4 bits, and
    computes in ``dtype``.

    Raises:
        UserError: the model cannot be loaded, or some of its weights are missing.
    """
    source = check_source(name_or_path, local_resolver=local_resolver, attn_implementation=attn_implementation)
    try:
        saved = AutoConfig.from_pretrained(source, revision=revision, trust_remote_code=False)
        check_attention(saved)
        check_decoder(saved, source)
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            source,
            revision=revision,
            dtype=dtype,
            attn_implementation=attn_implementation,
            trust_remote_code=False,
            output_loading_info=True,
            **_quantization_options(quantization, dtype=dtype),
        )
    except UnpicklingError as error:
        raise UserError(
            f"backbone {source}: its .bin files contain more than tensors and are not loaded; use a folder with "
            ".safetensors files"
        ) from error
    except UserError:
        raise
    except LOAD_ERRORS as error:
        raise UserError(load_error_message(source, error)) from error
    model, info = loaded
    # transformers initializes missing weights randomly and only logs a warning.
    if missing := sorted(info["missing_keys"]):
        raise UserError(
            f"backbone {source}: its files lack {missing[0]} and {len(missing) - 1} more weights of "
            f"{type(model).__name__}; download them again"
        )
    if quantization is not None:
        from imsm.models.backbones.quantized import compute_alike_in_all_modes  # optional dependency

        compute_alike_in_all_modes(model)
    # Gradient checkpointing needs training mode, in which two passes of a model with dropout would differ.
    disable_dropout(model)
    model.requires_grad_(False)
    return cast(PreTrainedModel, model.eval())


def _quantization_options(quantization: str | None, *, dtype: str) -> dict[str, Any]:
    """Return the arguments of `from_pretrained` that quantize the model while it is loaded.

    Raises:
        UserError: the quantization is unknown, or bitsandbytes is not installed.
    """
    if quantization is None:
        return {}
    given = f"backbone.quantization={quantization}"
    if quantization not in QUANTIZATIONS:
        raise UserError(f"{given}: is unknown; set {' or '.join(QUANTIZATIONS)}, or null")
    if importlib.util.find_spec("bitsandbytes") is None:
        raise UserError(f"{given}: requires bitsandbytes; {_INSTALL_QUANTIZATION}")
    compute_dtype = getattr(torch, dtype)
    options = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type=quantization, bnb_4bit_compute_dtype=compute_dtype
    )
    return {"quantization_config": options}


def load_tokenizer(
    *, name_or_path: str, revision: str | None = None, local_resolver: str | None = None
) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a backbone, with left padding and a padding token.

    Raises:
        UserError: the tokenizer cannot be loaded, or has no end-of-text token.
    """
    register_custom_models()
    source = resolve_path(name_or_path, local_resolver=local_resolver)
    check_json_files(source)
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            source, revision=revision, trust_remote_code=False, padding_side="left"
        )
        tokenizer("a")  # some settings of its files are read only now
    # of no other type: tokenizers raises Exception itself
    except Exception as error:
        raise UserError(missing_tokenizer(source) or load_error_message(source, error)) from error
    if tokenizer.eos_token_id is None:
        raise UserError(
            f"backbone {source}: its tokenizer has no end-of-text token; set eos_token in its tokenizer_config.json"
        )
    # Padding is always masked, so any existing token will do; a new one would need a new embedding row.
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def disable_dropout(model: PreTrainedModel) -> None:
    """Set all dropout, layer-drop and router-noise rates of a backbone without adapter to 0.

    Rates not found here are detected by `imsm.models.siamese.backbone_check`.
    """
    holders: dict[int, Any] = {}
    for module in model.modules():
        config = getattr(module, "config", None)
        for holder in (module, config) if isinstance(config, PretrainedConfig) else (module,):
            # Some layers (Falcon, GPT-J) read the configuration in every pass. It is not hashable, hence its id.
            holders[id(holder)] = holder
    for holder in holders.values():
        if isinstance(holder, _DropoutNd):
            holder.p = 0.0
        for name, value in vars(holder).items():
            if isinstance(value, float) and any(part in name for part in _RANDOM_RATES):
                setattr(holder, name, 0.0)


def load_error_message(source: str, error: Exception) -> str:
    """Return one line with the reason why a backbone cannot be loaded, and the fix."""
    if is_offline_mode() and not Path(source).is_dir():
        return (
            f"backbone {source}: is not completely in the local Hub cache, and HF_HUB_OFFLINE is set; run the same "
            "command with mode=download on a machine with network access"
        )
    return (
        f"backbone {source}: cannot be loaded ({first_line(error)}); set backbone.name_or_path to a local folder or "
        "a Hub id (a gated model needs `hf auth login` and its license accepted)"
    )
