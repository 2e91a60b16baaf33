"""Make a run folder of an adapter that was trained elsewhere, so that it can be evaluated like a trained one.

The folder has the files of a run with method=peft; `identity.json` holds the adapter's hash and configuration where a
training would be. The adapter is checked (`imsm.models.siamese.adapter_check`) before the folder is made.
"""

import json
import os
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from huggingface_hub import is_offline_mode, snapshot_download
from omegaconf import OmegaConf
from peft.utils import CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME
from transformers import AutoConfig

from imsm.config.compose import ConfigComposer
from imsm.config.identity import run_identity, run_name
from imsm.config.schema import IMPORTED_ADAPTER, ImportedConfig, MethodConfig, RunConfig
from imsm.config.tasks import TARGET
from imsm.config.validate import load_config
from imsm.distributed.context import DistributedContext
from imsm.evaluation.result import FILE as RESULT
from imsm.evaluation.result import read_result
from imsm.models.adapters.imported import ForeignAdapter, check_shapes, copy_adapter, read_foreign_adapter
from imsm.models.backbones.fingerprint import backbone_fingerprint
from imsm.models.backbones.folder_check import check_json_files
from imsm.models.backbones.loading import (
    MINIATURE,
    check_attention,
    load_error_message,
    register_custom_models,
    resolve_path,
)
from imsm.models.backbones.meta_model import build_meta_model
from imsm.models.builder import build_model
from imsm.pipeline.data import load_run_tokenizer
from imsm.pipeline.engine import local_device
from imsm.pipeline.model import model_kwargs
from imsm.pipeline.run_status import run_dir_of
from imsm.utils.errors import UserError, first_line
from imsm.utils.files import file_lock, fsync_tree
from imsm.utils.json_files import hash_values, write_hashed_json
from imsm.utils.manifest import write_manifest
from imsm.utils.options import list_options, load_option
from imsm.utils.paths import is_local_path, runs_root
from imsm.utils.run_dir import IDENTITY_HASH, MODEL_HASH, RunDir, check_input_hashes, open_run_dir

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_PEFT = MethodConfig(name="peft", stream="tuned", trainable=True)
_WITHOUT_EFFECT = ("method", "peft", "gate", "trainer", "seed", "mode", "resume", "task_sequence", "frozen_adapter")
_OF_AN_EVALUATION = ("evaluation", "engine", "logger")
_DTYPES = ("float32", "bfloat16", "float16")
_BASE_FIX = "give it by backbone=OPTION or --base FOLDER_OR_HUB_ID"


@dataclass(frozen=True, kw_only=True)
class ImportedRun:
    """An imported adapter: its run folder and the configuration that evaluates it (``mode=evaluate``).

    Attributes:
        run: The run folder.
        config: Its configuration.
        backbone: Overrides that select its backbone, for another run on it (``frozen_adapter=``).
    """

    run: RunDir
    config: RunConfig
    backbone: list[str]


def import_adapter(
    reference: str,
    *,
    runs_root: Path,
    overrides: Sequence[str] = (),
    base: str | None = None,
    config_dir: Path | None = None,
) -> ImportedRun:
    """Import the adapter in a folder in PEFT's format, or of a Hub id, and return its run.

    An adapter that was imported before, with the same base model, is not loaded again. ``overrides`` are those of
    `imsm run`; ``data=NAME`` names the task that counts as the target. ``base`` replaces the base model that
    the adapter names.

    Raises:
        UserError: The adapter cannot be used, its base model is not available, or an override is invalid.
    """
    adapter = read_foreign_adapter(_local_folder(reference))
    composer = ConfigComposer(config_dir)
    backbone = _backbone_overrides(adapter, overrides, base=base, config_dir=config_dir)
    config = _run_config(adapter, [*backbone, *overrides], composer, source=reference)
    run = RunDir(Path(config.run_dir) if config.run_dir else runs_root / run_name(config))
    if not run.is_trained:
        _check_base(adapter, config)
        with TemporaryDirectory(prefix="imsm-import-") as temporary:
            _prepare_model(adapter, config, Path(temporary))
            with file_lock(run.path, wait=True):
                if not run.is_trained:
                    _write_run(adapter, config, run, Path(temporary))
    given = [text for text in overrides if text.partition("=")[0].split(".")[0] == "backbone"]
    return ImportedRun(run=run, config=config, backbone=[*backbone, *given])


def _local_folder(reference: str) -> Path:
    """Return the folder of an adapter, downloading its two files if ``reference`` is a Hub id."""
    folder = Path(reference).expanduser()
    if folder.is_dir():
        return Path(os.path.abspath(folder))
    if is_local_path(reference) or not _HUB_ID.fullmatch(reference):
        problem = "is a file" if folder.is_file() else "no such folder, no finished run and no Hub id"
        raise UserError(f"{reference}: {problem}; give the folder that PEFT saved the adapter in, or owner/name")
    try:
        return Path(snapshot_download(reference, allow_patterns=[CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME]))
    # the Hub client and its transport raise a dozen types without a common base class
    except Exception as error:
        if is_offline_mode():
            raise UserError(
                f"{reference}: is neither a folder nor in the local Hub cache, and HF_HUB_OFFLINE is set; download it "
                f"elsewhere (hf download {reference} --local-dir FOLDER) and give FOLDER"
            ) from error
        raise UserError(
            f"{reference}: is not a folder and cannot be downloaded ({first_line(error)}); check the id, or log in "
            "with `hf auth login`"
        ) from error


def _backbone_overrides(
    adapter: ForeignAdapter, overrides: Sequence[str], *, base: str | None, config_dir: Path | None
) -> list[str]:
    """Return the overrides that select the adapter's base model, unless the user's do."""
    if any(text.startswith("backbone=") for text in overrides):
        return []
    if any(text.startswith("backbone.name_or_path=") for text in overrides):
        raise UserError("backbone.name_or_path=: give the base model by --base FOLDER_OR_HUB_ID")
    name, revision = (base, None) if base is not None else (adapter.base, adapter.revision)
    if not name:
        raise UserError(f"{adapter.folder}: {CONFIG_NAME} names no base model; {_BASE_FIX}")
    for option in list_options("backbone", config_dir=config_dir):
        values = load_option("backbone", option, config_dir=config_dir)
        if values.get("name_or_path") == name and revision in (None, "main", values.get("revision")):
            return [f"backbone={option}"]
    if is_local_path(name) or not _HUB_ID.fullmatch(name):
        name = os.path.abspath(os.path.expanduser(name))
        if not os.path.isdir(name):
            given = (
                f"--base {base}" if base is not None else f"{adapter.folder}: base_model_name_or_path={adapter.base}"
            )
            raise UserError(f"{given}: no such folder; {_BASE_FIX}")
    short = re.sub(r"[^A-Za-z0-9._-]+", "_", os.path.basename(name)).lstrip("._-") or "base"
    chosen = ["backbone=generic", f"backbone.name_or_path={json.dumps(name)}", f"backbone.name={json.dumps(short)}"]
    chosen += [] if revision is None else [f"backbone.revision={json.dumps(revision)}"]
    has_dtype = any(text.startswith("backbone.dtype=") for text in overrides)
    return chosen if has_dtype else [*chosen, f"backbone.dtype={_saved_dtype(name, revision)}"]


def _saved_dtype(name: str, revision: str | None) -> str:
    """Return the dtype of a model's weights as its configuration states it, float32 if it does not."""
    config = _base_config(name, revision)
    dtype = str(config.get_text_config(decoder=True).dtype or torch.float32).removeprefix("torch.")
    return dtype if dtype in _DTYPES else "bfloat16"


def _base_config(name: str, revision: str | None) -> Any:
    """Return the configuration of a base model, downloaded if it is on the Hub."""
    register_custom_models()
    source = resolve_path(name) if name == MINIATURE else name
    check_json_files(source)
    try:
        config = AutoConfig.from_pretrained(source, revision=revision, trust_remote_code=False)
    # the Hub client and its transport raise a dozen types without a common base class
    except Exception as error:
        raise UserError(load_error_message(source, error)) from error
    check_attention(config)
    return config


def _run_config(
    adapter: ForeignAdapter, overrides: Sequence[str], composer: ConfigComposer, *, source: str
) -> RunConfig:
    """Compose and validate the configuration of the run.

    Raises:
        UserError: An override has no effect or is invalid.
    """
    for text in overrides:
        if text.partition("=")[0].lstrip("+~").split(".")[0] in _WITHOUT_EFFECT:
            raise UserError(f"{text}: has no effect on an adapter that was trained elsewhere; omit it")
    # method=original: nothing is trained, so that no training data and no recipe are checked
    cfg = composer.compose([*overrides, "method=original"])
    target = str(cfg.data.name) if any(text.startswith("data=") for text in overrides) else None
    if target is None:
        cfg.evaluation.tasks = [name for name in cfg.evaluation.tasks if name != TARGET]
        if not cfg.evaluation.tasks:
            raise UserError("evaluation.tasks=[target]: no task is known as the target; give --target NAME")
    # the recipe of the composed method is kept, because the section `trainer` refers to it
    recipes = OmegaConf.to_container(cfg.peft.recipes)
    section = {"name": adapter.arguments["peft_type"].lower(), "_target_": IMPORTED_ADAPTER, "target_roles": []}
    cfg.peft = {**section, **adapter.arguments, "recipes": recipes}
    cfg.mode = "evaluate"
    config = load_config(cfg, config_dir=composer.config_dir)
    shown = source if _HUB_ID.fullmatch(source) and not Path(source).is_dir() else str(adapter.folder)
    imported = ImportedConfig(source=shown, target=target)
    return config.model_copy(update={"method": _PEFT, "imported": imported})


def _check_base(adapter: ForeignAdapter, config: RunConfig) -> None:
    """Compare the adapter's shapes with the backbone's, before its weights are loaded."""
    backbone = config.backbone
    name = resolve_path(backbone.name_or_path, local_resolver=backbone.local_resolver)
    plain = build_meta_model(_base_config(name, backbone.revision), dtype=backbone.dtype)
    check_shapes(adapter, plain, base=backbone.name_or_path)


def _prepare_model(adapter: ForeignAdapter, config: RunConfig, folder: Path) -> None:
    """Load and check the adapter, and write the model to ``folder``."""
    staged = folder / "staged"
    copy_adapter(adapter, staged, backbone_path=config.backbone.name_or_path)
    device = local_device(config, DistributedContext())
    model = build_model(adapter=staged, device=device, **model_kwargs(config))
    model.save_pretrained(folder / "model")
    # as they were saved: PEFT loads float16 values as float32
    shutil.copytree(staged, folder / "model" / "adapter", dirs_exist_ok=True)
    load_run_tokenizer(config).save_pretrained(folder / "model")


def _write_run(adapter: ForeignAdapter, config: RunConfig, run: RunDir, prepared: Path) -> None:
    """Write the run folder; `training.json`, written last, marks it as complete."""
    identity, backbone = run_identity(config), config.backbone
    open_run_dir(run.path, identity)
    fingerprint = backbone_fingerprint(
        name_or_path=backbone.name_or_path, revision=backbone.revision, local_resolver=backbone.local_resolver
    )
    check_input_hashes(run, {"backbone": fingerprint})
    shutil.rmtree(run.model, ignore_errors=True)
    shutil.copytree(prepared / "model", run.model)
    model_hash = write_manifest(run.model)
    fsync_tree(run.model)
    record: dict[str, Any] = {"imported": config.imported.model_dump() if config.imported else None}
    record |= {"trainable_parameters": {"adapter": adapter.num_parameters, "gate": 0}}
    hashes = {MODEL_HASH: model_hash, IDENTITY_HASH: hash_values(identity)}
    write_hashed_json(run.trained, record | hashes)


def evaluated_run(folder: Path, *, overrides: Sequence[str], config_dir: Path | None = None) -> RunConfig:
    """Return the configuration that evaluates a finished run again.

    ``overrides`` may set `evaluation`, `engine` and `logger`; everything else is the run's own.

    Raises:
        UserError: The run has no result, or an override is invalid or of another section.
    """
    folder = Path(os.path.abspath(folder))
    saved = RunConfig.from_file(read_result(folder)["config"], source=folder / RESULT, config_dir=config_dir)
    composer = ConfigComposer(config_dir)
    for text in overrides:
        if text.partition("=")[0].lstrip("+~").split(".")[0] not in _OF_AN_EVALUATION:
            raise UserError(
                f"{text}: is part of the finished run {folder.name}; only {', '.join(_OF_AN_EVALUATION)} can change"
            )
    cfg = composer.compose([*overrides, "method=original"])
    values = saved.to_dict()
    if "${" in json.dumps(values):
        raise UserError(f"{folder / RESULT}: its configuration contains ${{...}}, which no finished run has")
    chosen = {text.partition("=")[0] for text in overrides}
    for name in _OF_AN_EVALUATION:
        if name not in chosen:
            given = {key.removeprefix(f"{name}.") for key in chosen if key.startswith(f"{name}.")}
            changed = {key: cfg[name][key] for key in given}
            cfg[name] = values[name] | changed
    for name in ("backbone", "peft", "data", "gate"):
        cfg[name] = values[name]
    if saved.data.source == saved.backbone.default_data_source:
        # as composed: an explicit source would contradict data.local_dir
        cfg.data.source = "${backbone.default_data_source}"
    checked = load_config(cfg, config_dir=config_dir)
    new = {name: getattr(checked, name) for name in (*_OF_AN_EVALUATION, "tasks", "metrics")}
    # a run at its usual place records no path
    is_usual = run_dir_of(saved, runs_root=runs_root()).resolve() == folder.resolve()
    return saved.model_copy(update=new | {"mode": "evaluate", "run_dir": saved.run_dir if is_usual else str(folder)})
