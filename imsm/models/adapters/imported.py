"""Adapters that were trained elsewhere, in PEFT's format: read, check and copy their two files.

Everything in `adapter_config.json` is untrusted. Only fields of the method's configuration class are used; modules and
tokenizers that the file names are never imported or loaded, and weights are read from safetensors only.
"""

import os
import re
import shutil
import warnings
from collections.abc import Mapping
from dataclasses import MISSING, Field, dataclass, fields
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from peft import PeftConfig, get_peft_model, get_peft_model_state_dict
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from peft.utils import CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME, WEIGHTS_NAME
from safetensors import SafetensorError, safe_open
from transformers import PreTrainedModel

from imsm.models.adapters import loramoe  # noqa: F401 (registers its type with PEFT)
from imsm.models.adapters.base import RUN_FIELDS, AdapterSpec, config_argument_errors, instantiate_config
from imsm.models.adapters.unsupported import unsupported_reason
from imsm.utils.errors import UserError, first_line
from imsm.utils.hashing import hash_file
from imsm.utils.json_files import read_json
from imsm.utils.messages import format_value, shorten

_MAX_CONFIG_BYTES = 2**20
_REVISION = re.compile(r"\w[\w./-]*")
_NOT_USED = {*RUN_FIELDS, "megatron_core", "runtime_config"}
# Used only to initialize a prompt before training, from a tokenizer that the file names.
_NOT_USED |= {"prompt_tuning_init", "prompt_tuning_init_text", "tokenizer_name_or_path", "tokenizer_kwargs"}
_CONVERT = (
    'python -c "import torch, safetensors.torch as s; '
    "s.save_file({k: v.contiguous() for k, v in torch.load('adapter_model.bin', weights_only=True).items()}, "
    "'adapter_model.safetensors')\""
)
_FIX = "save it again with PEFT's save_pretrained, or download it again"


@dataclass(frozen=True, kw_only=True)
class ForeignAdapter:
    """An adapter in PEFT's format.

    Attributes:
        folder: Its folder.
        base: `base_model_name_or_path`, or None.
        revision: Revision of ``base``, or None.
        arguments: Arguments of `imported_adapter`.
        num_parameters: Number of values in its weights.
    """

    folder: Path
    base: str | None
    revision: str | None
    arguments: dict[str, Any]
    num_parameters: int


def imported_adapter(*, peft_type: str, kwargs: dict[str, Any], sha256: str) -> AdapterSpec:
    """Return the method of an imported adapter; ``sha256`` identifies its weights.

    Raises:
        UserError: PEFT has no such type or field, a value is invalid, or the method is unsupported.
    """
    classes = {str(kind.value): config for kind, config in PEFT_TYPE_TO_CONFIG_MAPPING.items()}
    if peft_type not in classes:
        raise UserError(f"peft_type={shorten(peft_type)}: is not a method of the installed PEFT, so it is not loaded")
    # first: the reason why a method is unsupported is the more useful error
    reason = unsupported_reason(SimpleNamespace(**{"peft_type": SimpleNamespace(value=peft_type), **kwargs}))
    if reason is not None:
        raise UserError(f"{reason}; it cannot be evaluated here")
    if errors := config_argument_errors(peft_type, classes[peft_type], kwargs):
        raise UserError("; ".join(map(shorten, errors)))
    return AdapterSpec(instantiate_config(classes[peft_type], kwargs, section=peft_type))


def read_foreign_adapter(folder: Path) -> ForeignAdapter:
    """Read the configuration of the adapter in ``folder`` and the names and shapes of its weights.

    Raises:
        UserError: A file is missing, a pickle, a link out of the folder or damaged, or the method is unsupported.
    """
    _check_files(folder)
    path = folder / CONFIG_NAME
    saved = read_json(path, fix=_FIX, shape={"peft_type": str})
    # interpolations would be resolved where the values become part of a configuration
    if "${" in str(saved):
        raise UserError(f"{path}: contains ${{...}}, which is not part of a PEFT configuration; {_FIX}")
    if (task := saved.get("task_type")) not in (None, "CAUSAL_LM"):
        raise UserError(
            f"{path}: task_type={shorten(str(task))}: only adapters of causal language models are evaluated"
        )
    base, revision = saved.get("base_model_name_or_path"), saved.get("revision")
    for key, value in (("base_model_name_or_path", base), ("revision", revision)):
        if not isinstance(value, str | None):
            raise UserError(f"{path}: {key}={shorten(str(value))}: must be a text; {_FIX}")
    if revision is not None and (".." in revision or not _REVISION.fullmatch(revision)):
        raise UserError(f"{path}: revision={shorten(revision)}: is not a branch, tag or commit; {_FIX}")
    weights = folder / SAFETENSORS_WEIGHTS_NAME
    try:
        kwargs = _method_arguments(saved)
        arguments = {"peft_type": saved["peft_type"], "kwargs": kwargs, "sha256": hash_file(weights)}
        imported_adapter(**arguments)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    count = sum(shape.numel() for shape in _saved_shapes(weights).values())
    return ForeignAdapter(folder=folder, base=base, revision=revision, arguments=arguments, num_parameters=count)


def copy_adapter(adapter: ForeignAdapter, folder: Path, *, backbone_path: str) -> None:
    """Copy the weights to ``folder``, and write the configuration without fields that are not used.

    Raises:
        UserError: The weights changed since they were read.
    """
    folder.mkdir(parents=True, exist_ok=True)
    copy = folder / SAFETENSORS_WEIGHTS_NAME
    shutil.copyfile(adapter.folder / SAFETENSORS_WEIGHTS_NAME, copy)
    if hash_file(copy) != adapter.arguments["sha256"]:
        raise UserError(f"{adapter.folder}: its weights changed while they were read; run the command again")
    config: Any = imported_adapter(**adapter.arguments).config
    # PEFT writes a set in an order that differs between processes
    sets = {name: sorted(value) for name, value in vars(config).items() if isinstance(value, set)}
    vars(config).update(sets)
    config.base_model_name_or_path, config.inference_mode = backbone_path, True
    config.save_pretrained(str(folder))


def check_shapes(adapter: ForeignAdapter, backbone: PreTrainedModel, *, base: str) -> None:
    """Compare the names and shapes of the weights with those that the method has on a backbone.

    ``backbone`` is on the meta device, so that an absurd rank allocates nothing.

    Raises:
        UserError: They differ.
    """
    config: Any = imported_adapter(**adapter.arguments).config
    config.inference_mode = True
    try:
        with torch.device("meta"), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about deprecated names and unusual targets, as in `attach_adapter`
            expected = get_peft_model_state_dict(get_peft_model(backbone, config), save_embedding_layers=False)
    except (ValueError, LookupError) as error:
        raise UserError(
            f"{adapter.folder}: does not fit the base model {base} ({first_line(error)}); {_OTHER_BASE}"
        ) from error
    except (RuntimeError, TypeError, AttributeError, AssertionError):
        return  # needs values; loading the adapter reports what does not fit
    saved = _saved_shapes(adapter.folder / SAFETENSORS_WEIGHTS_NAME)
    if getattr(config, "rank_pattern", None) and config.peft_type.value == "ADALORA":
        return  # PEFT resizes these layers when it loads them
    own = {f"base_model.model.{name.replace('.base_layer', '')}" for name in backbone.state_dict()}
    for name in sorted(saved.keys() ^ expected.keys()):
        if name.replace(".base_layer", "") in own:
            raise UserError(
                f"{adapter.folder}: contains weights of the base model itself ({name}), because its vocabulary or "
                "embeddings were changed; adapters that replace weights of the base model are not evaluated"
            )
        where = f"are in its weights but not in {base} with this {CONFIG_NAME}"
        if name in expected:
            where = f"are missing in {SAFETENSORS_WEIGHTS_NAME}"
        raise UserError(f"{adapter.folder}: does not fit its base model: values of {name} {where}; {_OTHER_BASE}")
    for name, shape in saved.items():
        if shape != expected[name].shape:
            raise UserError(
                f"{adapter.folder}: does not fit its base model: {name} has the shape {list(shape)}, and {base} with "
                f"this {CONFIG_NAME} needs {list(expected[name].shape)}; {_OTHER_BASE}"
            )


_OTHER_BASE = "give its base model by backbone=OPTION or --base FOLDER_OR_HUB_ID"


def _check_files(folder: Path) -> None:
    """Check that both files exist; a link may lead out of the folder only to the blobs of a Hub cache."""
    if not os.path.lexists(folder / CONFIG_NAME):
        raise UserError(f"{folder}: contains no adapter ({CONFIG_NAME} is missing); give a folder that PEFT saved")
    weights = folder / SAFETENSORS_WEIGHTS_NAME
    if not os.path.lexists(weights):
        found = [name for name in (WEIGHTS_NAME, "adapter_model.pt") if os.path.lexists(folder / name)]
        if found:
            raise UserError(
                f"{folder / found[0]}: is a pickle, which can run code and is not loaded; if you trust it, convert it "
                f"in its folder: {_CONVERT.replace(WEIGHTS_NAME, found[0])}"
            )
        raise UserError(f"{folder}: contains no weights ({weights.name} is missing); {_FIX}")
    allowed = [Path(os.path.realpath(folder))]
    if folder.parent.name == "snapshots":
        allowed.append(Path(os.path.realpath(folder.parents[1] / "blobs")))
    for path in (folder / CONFIG_NAME, weights):
        real = Path(os.path.realpath(path))
        if not any(real.is_relative_to(each) for each in allowed):
            raise UserError(f"{path}: is a symbolic link that leads out of the folder; replace it by a copy")
        if not path.is_file():
            raise UserError(f"{path}: is not a file; {_FIX}")
    if (folder / CONFIG_NAME).stat().st_size > _MAX_CONFIG_BYTES:
        raise UserError(f"{folder / CONFIG_NAME}: is larger than {_MAX_CONFIG_BYTES:,} bytes; {_FIX}")


def _method_arguments(saved: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of a method's configuration that are not at their defaults.

    Raises:
        UserError: A field that has a value is unknown to the installed PEFT.
    """
    kinds = {str(kind.value): config for kind, config in PEFT_TYPE_TO_CONFIG_MAPPING.items()}
    known = {field.name: field for field in fields(kinds.get(saved["peft_type"], PeftConfig))}
    arguments = {}
    for name, value in saved.items():
        if name in _NOT_USED:
            continue
        if name not in known:
            # written by a newer version; without a value it has no effect
            if value and saved["peft_type"] in kinds:
                raise UserError(
                    f"{name}={shorten(format_value(value))}: the installed PEFT has no such field of "
                    f"{saved['peft_type']}; install the version that saved it ({saved.get('peft_version', 'newer')})"
                )
            continue
        if known[name].type in (int, "int") and isinstance(value, float) and value.is_integer():
            value = int(value)
        if value != _default(known[name]):
            arguments[name] = sorted(value) if name == "target_modules" and isinstance(value, list) else value
    return arguments


def _default(field: "Field[Any]") -> Any:
    if field.default is not MISSING:
        return field.default
    return None if field.default_factory is MISSING else field.default_factory()


def _saved_shapes(weights: Path) -> dict[str, torch.Size]:
    """Return the shape of each tensor, without reading values."""
    try:
        with safe_open(weights, framework="pt") as tensors:
            return {name: torch.Size(tensors.get_slice(name).get_shape()) for name in tensors.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise UserError(f"{weights}: cannot be read ({first_line(error)}); {_FIX}") from error
