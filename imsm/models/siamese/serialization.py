"""Save and load a siamese model: configuration, adapter and gate, but never the backbone.

A folder holds ``config.json``, ``generation_config.json``, ``adapter/`` (PEFT's format), ``gate.safetensors`` and
``hashes.json``, the SHA-256 of the others, which is compared with them at every load.
"""

import inspect
import math
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self, cast

import torch
from huggingface_hub.errors import StrictDataclassError
from peft import PeftConfig, PeftModel, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import GenerationConfig, PretrainedConfig, PreTrainedModel
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from transformers.utils import CONFIG_NAME, GENERATION_CONFIG_NAME, SAFE_WEIGHTS_NAME

from imsm.models.adapters.base import freeze_buffers
from imsm.models.adapters.custom import import_custom_method
from imsm.models.adapters.unsupported import reject_unsupported
from imsm.models.backbones.loading import load_backbone
from imsm.models.siamese.adapter_check import BackboneSnapshot, check_adapter, snapshot
from imsm.models.siamese.config import SiameseConfig
from imsm.models.siamese.gate import build_gate
from imsm.models.siamese.query_pooling import POOLINGS
from imsm.models.siamese.streams import StreamRunner
from imsm.utils.errors import UserError
from imsm.utils.json_files import read_json, shape_problem
from imsm.utils.manifest import verify_manifest, verify_run_model, write_manifest
from imsm.utils.run_dir import RunDir

ADAPTER = "adapter"
GATE = "gate.safetensors"
_ADAPTER_CONFIG = "adapter_config.json"
_ADAPTER_WEIGHTS = "adapter_model.safetensors"
_READ = (f"{ADAPTER}/", GATE, CONFIG_NAME, GENERATION_CONFIG_NAME)
"""Starts of the names of files that loading reads."""
_CONFIG_SHAPE = {"text_config": dict, "text_config.model_type": str, "backbone": dict, "backbone.name_or_path": str}
_GATE_SHAPE = {"gate": dict, "gate._target_": str}
_FIX = "copy the folder again, or save the model to an empty one"
_LOAD_ERRORS = (
    *(AttributeError, ImportError, LookupError, OSError, RuntimeError, SafetensorError, StrictDataclassError),
    *(TypeError, ValueError),
)
_HUB_OPTIONS = {
    *("_commit_hash", "adapter_kwargs", "cache_dir", "code_revision", "force_download", "local_files_only"),
    *("proxies", "revision", "subfolder", "token", "trust_remote_code"),
}
"""Hub options that the auto classes pass to every model."""


class SiameseSerializationMixin:
    """`save_pretrained`, `from_pretrained` and `from_parts` of a siamese model."""

    # members of the model class
    config: Any
    adapted: nn.Module
    gate: nn.Module | None
    generation_config: Any
    parameters: Any
    named_parameters: Any
    state_dict: Any
    stream: Any
    streams: StreamRunner
    eval: Any

    @classmethod
    def from_parts(
        cls, config: SiameseConfig, adapted: nn.Module, gate: nn.Module | None, before: BackboneSnapshot | None
    ) -> Self:
        """Combine backbone, adapter and gate on the backbone's device, and verify the adapter.

        Every model, new or saved, is built here. Without ``before``, a snapshot of the backbone
        before the adapter was attached, the adapter is not verified.

        Raises:
            UserError: the adapter fails `imsm.models.siamese.adapter_check`.
        """
        model: Any = cls(config, adapted, gate)  # type: ignore[call-arg]
        if before is not None:
            model.to(model.backbone.device)
            check_adapter(model, before)
        return cast("Self", model)

    def save_pretrained(
        self,
        save_directory: str | Path,
        is_main_process: bool = True,
        state_dict: Mapping[str, torch.Tensor] | None = None,
    ) -> None:
        """Write configuration, adapter and gate, but never the backbone.

        ``state_dict`` replaces the model's values, e.g. with gathered ones. In a checkpoint folder of transformers'
        Trainer, ``model.safetensors`` holds the trainable parameters by name once more: Trainer resumes from it.

        Raises:
            UserError: the configuration does not name the backbone, or the adapter was changed through PEFT.
        """
        self.streams.guard.check()
        if not is_main_process:
            return
        values = self.state_dict() if state_dict is None else state_dict
        folder = Path(save_directory)
        backbone = _backbone_arguments(self.config)
        folder.mkdir(parents=True, exist_ok=True)
        self.config.stream = self.stream
        self.config.architectures = [type(self).__name__]
        self.config.save_pretrained(folder)
        saved = [CONFIG_NAME]
        if self.generation_config is not None:
            self.generation_config.save_pretrained(folder)
            saved.append(GENERATION_CONFIG_NAME)
        if isinstance(self.adapted, PeftModel):
            adapter = _without_prefix(values, "adapted.")
            save_adapter(self.adapted, folder / ADAPTER, backbone_path=backbone["name_or_path"], state_dict=adapter)
            saved += [f"{ADAPTER}/{name}" for name in (_ADAPTER_CONFIG, _ADAPTER_WEIGHTS)]
        if self.gate is not None:
            save_file(_contiguous(_without_prefix(values, "gate.")), folder / GATE)
            saved.append(GATE)
        if folder.name.startswith(f"{PREFIX_CHECKPOINT_DIR}-"):
            trainable = {name: values[name] for name, p in self.named_parameters() if p.requires_grad}
            save_file(_contiguous(trainable), folder / SAFE_WEIGHTS_NAME)
            saved.append(SAFE_WEIGHTS_NAME)
        write_manifest(folder, saved)

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | Path,
        *,
        config: PretrainedConfig | None = None,
        dtype: torch.dtype | str | None = None,
        device: torch.device | str | None = None,
        trainable: bool = False,
        load: Callable[..., PreTrainedModel] = load_backbone,
        **hub_options: Any,
    ) -> Self:
        """Load a run folder, or a folder written by `save_pretrained`.

        ``config`` and the backbone's ``dtype`` replace the saved ones; "auto" keeps the saved dtype.
        ``trainable`` makes adapter and gate require gradients. ``load`` is a function with the arguments of
        `load_backbone`. Hub options of the auto classes are ignored.

        Raises:
            UserError: the folder holds no siamese model, its files changed since they were saved, or its backbone
                is not available.
            TypeError: an unknown option.
        """
        unknown = sorted(hub_options.keys() - _HUB_OPTIONS)
        if unknown:
            raise TypeError(f"{cls.__name__}.from_pretrained got an unexpected argument {', '.join(unknown)}")
        folder = _verified_folder(Path(pretrained_model_name_or_path))
        if not isinstance(config, SiameseConfig):
            config = _read_config(folder / CONFIG_NAME)
        arguments = _backbone_arguments(config)
        # pipelines of transformers pass "auto" by default
        if dtype not in (None, "auto"):
            arguments["dtype"] = str(dtype).removeprefix("torch.")
        backbone = load(**arguments)
        device = backbone.device if device is None else torch.device(device)
        backbone.to(device)  # type: ignore[arg-type]
        adapted: nn.Module = backbone
        before = None
        if (folder / ADAPTER).is_dir():
            adapted, before = load_adapter(backbone, folder / ADAPTER, trainable=trainable)
        gate = None
        if config.gate:
            gate = build_gate(hidden_size=config.hidden_size, **config.gate)
            _load_gate_weights(gate, folder)
            if not trainable:
                gate.requires_grad_(False)
        try:
            model = cls.from_parts(config, adapted, gate, before)
        except UserError:
            raise
        except ValueError as error:
            raise UserError(f"{folder}: the adapter or the gate is missing ({error})") from error
        if (folder / GENERATION_CONFIG_NAME).is_file():
            with _reading(folder / GENERATION_CONFIG_NAME, "is damaged"):
                model.generation_config = GenerationConfig.from_pretrained(folder)
        model.eval()
        return model

    def load_weights(self, folder: Path) -> None:
        """Copy the adapter and gate values that `save_pretrained` wrote into this model.

        Raises:
            UserError: they changed since they were saved, belong to another model, or do not cover all trainable
                parameters.
        """
        verify_model_folder(folder)
        trainable = [p for p in self.parameters() if p.requires_grad]
        with torch.no_grad():
            for parameter in trainable:
                # marks parameters that the files do not contain
                parameter.fill_(math.nan)
        with _reading(folder / ADAPTER, "adapter cannot be loaded"):
            values = load_file(folder / ADAPTER / _ADAPTER_WEIGHTS)
            if values.keys() != get_peft_model_state_dict(self.adapted, save_embedding_layers=False).keys():
                raise ValueError("its layers are not those of the model")
            set_peft_model_state_dict(self.adapted, values)
        if self.gate is not None:
            _load_gate_weights(self.gate, folder)
        if not all(bool(parameter.isfinite().all()) for parameter in trainable):
            raise UserError(f"{folder}: lacks some of the trainable parameters, so training cannot continue from it")


def _read_config(path: Path) -> SiameseConfig:
    """Return the configuration of a saved model.

    Raises:
        UserError: it is damaged.
    """
    values = read_json(path, fix=_FIX, shape=_CONFIG_SHAPE)
    problem = None if values.get("gate") is None else shape_problem(values, _GATE_SHAPE)
    if values.get("pooling", "mean") not in tuple(POOLINGS):
        problem = f"pooling must be {', '.join(POOLINGS)}"
    if problem:
        raise UserError(f"{path}: is damaged ({problem}); {_FIX}")
    with _reading(path, "is damaged"):
        return SiameseConfig.from_pretrained(path.parent)


def _verified_folder(folder: Path) -> Path:
    """Return the folder of the model in ``folder``, which may be a run's."""
    run = RunDir(folder)
    if run.is_trained or (run.model / CONFIG_NAME).is_file():
        folder = run.model
    elif not (folder / CONFIG_NAME).is_file():
        raise UserError(f"{folder}: holds no siamese model (no {CONFIG_NAME}); pass the folder of a finished run")
    verify_model_folder(folder)
    return folder


def verify_model_folder(folder: Path) -> None:
    """Check that the files of a saved model, of a run or alone, are those that were saved.

    Next to a model that is not part of a run, other programs may add files, such as a tokenizer.

    Raises:
        UserError: a file that loading reads is missing, changed or was added.
    """
    run = RunDir(folder.parent)
    if folder.name == run.model.name and run.is_trained:
        verify_run_model(run)
        return
    verify_manifest(folder, fix=_FIX, may_add=lambda name: not name.startswith(_READ))


def save_adapter(
    adapted: PeftModel, folder: Path, *, backbone_path: str, state_dict: Mapping[str, torch.Tensor] | None = None
) -> None:
    """Write the adapter in PEFT's format, so that PEFT alone can load it.

    ``state_dict`` replaces the values of ``adapted``.

    An AdaLoRA adapter keeps its full rank, with zeros in pruned directions: PEFT would remove these
    and, when loading, scale by the smaller rank, which is another model.
    """
    folder.mkdir(parents=True, exist_ok=True)
    config: Any = adapted.peft_config["default"]
    rank_pattern = getattr(config, "rank_pattern", None)
    path, inference_mode = config.base_model_name_or_path, config.inference_mode
    # PEFT writes a set in an order that differs between processes, and with it the file's hash
    sets = {name: value for name, value in vars(config).items() if isinstance(value, set)}
    vars(config).update({name: sorted(value) for name, value in sets.items()})
    if rank_pattern:
        config.rank_pattern = {}
    try:
        # in inference mode PEFT would save the input of a prompt encoder instead of its output
        values = get_peft_model_state_dict(adapted, state_dict=state_dict, save_embedding_layers=False)
        save_file(_contiguous(values), folder / _ADAPTER_WEIGHTS)
        config.base_model_name_or_path, config.inference_mode = backbone_path, True
        config.save_pretrained(str(folder))
    finally:
        config.base_model_name_or_path, config.inference_mode = path, inference_mode
        vars(config).update(sets)
        if rank_pattern:
            config.rank_pattern = rank_pattern


def load_adapter(backbone: PreTrainedModel, folder: Path, *, trainable: bool) -> tuple[nn.Module, BackboneSnapshot]:
    """Attach the adapter in ``folder``; return the model and a snapshot of the backbone.

    Raises:
        UserError: the adapter cannot be loaded, or cannot be trained further.
    """
    with _reading(folder, "adapter cannot be loaded"):
        import_custom_method(folder)
        config: Any = PeftConfig.from_pretrained(str(folder))
    reject_unsupported(config)
    if trainable and config.is_prompt_learning:
        raise UserError(
            f"{folder}: cannot be trained further, because PEFT saves a learned prompt without its encoder; "
            "an interrupted run resumes from its checkpoint"
        )
    before = snapshot(backbone, config)
    with _reading(folder, "adapter cannot be loaded"):
        # first, because without this file PEFT would read a pickle
        saved = load_file(folder / _ADAPTER_WEIGHTS).keys()
        # PEFT uses a deprecated name of transformers
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)
            adapted = PeftModel.from_pretrained(backbone, str(folder), is_trainable=trainable)
        missing = get_peft_model_state_dict(adapted, save_embedding_layers=False).keys() - saved
        # PEFT only warns and keeps random values
        if missing:
            raise ValueError(f"no {min(missing)}")
    # on a bfloat16 backbone PEFT leaves a cast adapter trainable
    if not trainable:
        return adapted.requires_grad_(False), before
    freeze_buffers(adapted)
    return adapted, before


def _load_gate_weights(gate: nn.Module, folder: Path) -> None:
    with _reading(folder / GATE, f"does not fit the gate in {CONFIG_NAME}"):
        gate.load_state_dict(load_file(folder / GATE))


@contextmanager
def _reading(path: Path, problem: str) -> Iterator[None]:
    """Report errors while reading ``path`` as a UserError."""
    try:
        yield
    except _LOAD_ERRORS as error:
        raise UserError(f"{path}: {problem} ({' '.join(str(error).split())})") from error


def _backbone_arguments(config: SiameseConfig) -> dict[str, Any]:
    """Return the arguments of `load_backbone`."""
    if not config.backbone or "name_or_path" not in config.backbone:
        raise UserError('config.backbone: names no backbone; set config.backbone = {"name_or_path": ...}')
    unknown = config.backbone.keys() - inspect.signature(load_backbone).parameters
    if unknown:
        raise UserError(f"config.backbone: has the unknown key {min(unknown)}; remove it")
    return dict(config.backbone)


def _without_prefix(values: Mapping[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {name.removeprefix(prefix): value for name, value in values.items() if name.startswith(prefix)}


def _contiguous(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    # copies: safetensors rejects storage shared between layers (RandLoRA's bases)
    return {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in tensors.items()}
