"""From a composed configuration to a validated `RunConfig`, or to all of its errors.

Sections are validated by their schema (`imsm.config.schema`). Here are the checks across sections
and of files. Each check names the sections that it reads as its arguments; it is skipped if one of
them is invalid, so that all other errors are still reported.
"""

import inspect
import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Annotated, Any

from omegaconf import DictConfig, OmegaConf
from pydantic import TypeAdapter, ValidationError

from imsm.config.frozen_adapter import frozen_adapter_conflicts, imported_peft, resolve_frozen_adapter
from imsm.config.interpolation import resolve
from imsm.config.schema import (
    SHIPPED_GATE,
    BackboneConfig,
    DataConfig,
    EngineConfig,
    EvaluationConfig,
    GateConfig,
    MethodConfig,
    PeftConfig,
    RehearsalConfig,
    RunConfig,
    TrainerConfig,
)
from imsm.config.tasks import TARGET, TaskLookup
from imsm.data.task import Task
from imsm.distributed.multi_node import slots_per_node
from imsm.models.adapters.base import adapter_errors, import_factory
from imsm.models.backbones.loading import MINIATURE
from imsm.utils.errors import UserError
from imsm.utils.instantiate import accepts_target_modules, argument_errors
from imsm.utils.messages import (
    INCONSISTENT,
    did_you_mean,
    format_errors,
    format_value,
    shorten,
    unknown_key_error,
    validation_errors,
)
from imsm.utils.options import closest_match
from imsm.utils.paths import is_local_path
from imsm.utils.strict_model import FIELDS_ONLY
from imsm.utils.trust import GATES, RESOLVERS, import_trusted, trust_folder

_DERIVED = {"tasks", "replay_tasks", "stage_tasks", "previous_stage", "frozen_run", "imported", "metrics"}
_DERIVED |= {"prompts_hash", "config_dir"}
_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
_RESUME = ("auto", "required", "never")


def load_config(cfg: DictConfig, *, config_dir: Path | None = None) -> RunConfig:
    """Return the validated configuration of a run.

    Raises:
        UserError: The configuration is invalid; the message lists all errors.
    """
    result = validate(cfg, config_dir=config_dir)
    if result.config is None:
        raise UserError(format_errors(result.errors))
    return result.config


@dataclass(frozen=True, slots=True, kw_only=True)
class ValidationResult:
    """A valid configuration, or its errors, one line each.

    ``rejected`` has the keys whose values are invalid on their own; checks that depend on them were skipped.
    """

    config: RunConfig | None
    errors: list[str]
    rejected: set[str]


def validate(cfg: DictConfig, *, config_dir: Path | None = None) -> ValidationResult:
    """Validate a composed configuration and look up what it names.

    ``config_dir`` is the folder given by `--config-dir`; its modules are trusted (`imsm.utils.trust`).
    """
    if config_dir is not None:
        trust_folder(config_dir)
    # Not OmegaConf.resolve, which raises the first failure.
    values, unresolved = resolve(cfg)
    unusable = _make_paths_absolute(values)
    if unusable:
        # every later check would fail on such a path with an error of the operating system
        return ValidationResult(config=None, errors=list(unusable.values()), rejected=set(unusable))
    fields = {name: field for name, field in RunConfig.model_fields.items() if name not in _DERIVED}
    errors = list(unresolved.values())
    errors += [unknown_key_error("", name, value, fields) for name, value in values.items() if name not in fields]
    sections: dict[str, Any] = {}
    rejected: set[str] = set()
    for name in fields:
        if name not in values:
            errors.append(f"{name}: is missing")
            continue
        try:
            sections[name] = _adapter(name).validate_python(values[name], strict=True)
        except ValidationError as error:
            details: list[dict[str, Any]] = [dict(detail) for detail in error.errors()]
            keys = [".".join(map(str, (name, *detail["loc"]))) for detail in details]
            errors += _describe(name, [d for d, key in zip(details, keys, strict=True) if key not in unresolved])
            # The fields of an inconsistent section are valid one by one, so that cross-section checks can run.
            if all(detail["type"] == INCONSISTENT for detail in details):
                sections[name] = _adapter(name).validate_python(values[name], strict=True, context=FIELDS_ONLY)
            else:
                rejected |= set(keys)
    lookup = TaskLookup(cfg, config_dir)
    derived = _look_up(sections, lookup)
    errors += lookup.errors
    context = {
        "config_dir": config_dir,
        "tasks": derived.get("tasks", {}),
        "source_is_set": not OmegaConf.is_interpolation(cfg.get("data", {}), "source"),
    }
    # An argument that could not be resolved is missing for its target as well: report it once.
    errors += [e for e in _cross_section_errors(sections | context) if e.partition(":")[0] not in unresolved]
    if errors:
        return ValidationResult(config=None, errors=errors, rejected=rejected)
    derived["config_dir"] = str(config_dir) if config_dir else None
    return ValidationResult(config=RunConfig(**sections | derived), errors=[], rejected=set())


# Building an adapter takes much longer than a validation, and a sweep validates many jobs.
@cache
def _adapter(name: str) -> TypeAdapter[Any]:
    field = RunConfig.model_fields[name]
    annotated: Any = Annotated[(field.annotation, *field.metadata, name)]
    return TypeAdapter(annotated)


def _make_paths_absolute(values: dict[str, Any]) -> dict[str, str]:
    """Make a saved configuration independent of the current folder; return an error for each unusable path."""
    errors: dict[str, str] = {}
    data, backbone, engine = (values.get(name) for name in ("data", "backbone", "engine"))
    rehearsal = values.get("rehearsal")
    paths = [(values, "run_dir"), (values, "frozen_adapter"), (data, "mirror_dir"), (data, "local_dir")]
    paths += [(rehearsal, "prompts")] if isinstance(rehearsal, dict) and _is_file(rehearsal.get("prompts")) else []
    for section, key in [*paths, (backbone, "name_or_path"), (engine, "hostfile")]:
        if not isinstance(section, dict):
            continue
        text = section.get(key)
        if isinstance(text, str) and text and (key != "name_or_path" or is_local_path(text)):
            section[key] = os.path.abspath(os.path.expanduser(text))
            name = next((f"{group}.{key}" for group, each in values.items() if each is section), key)
            if reason := _unusable(section[key]):
                errors[name] = f"{name}={shorten(text)}: {reason}; give another path"
    return errors


def _is_file(name: Any) -> bool:
    return isinstance(name, str) and "\0" not in name and os.path.isfile(os.path.expanduser(name))


def _unusable(path: str) -> str | None:
    """Return why the operating system rejects a path, or None; it need not exist."""
    try:
        os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:  # ValueError: a null byte
        return str(getattr(error, "strerror", None) or error)
    return None


def _describe(name: str, details: list[dict[str, Any]]) -> list[str]:
    annotation = RunConfig.model_fields[name].annotation
    fields = getattr(annotation, "model_fields", None)
    if fields is None:
        return validation_errors("", {name: annotation}, [{**each, "loc": (name, *each["loc"])} for each in details])
    return validation_errors(name, {field.alias or key: field.annotation for key, field in fields.items()}, details)


def _look_up(sections: dict[str, Any], lookup: TaskLookup) -> dict[str, Any]:
    """Return the derived fields of a RunConfig; a task sequence replaces the sections data and evaluation."""
    derived: dict[str, Any] = {}
    backbone, method, peft = (sections.get(name) for name in ("backbone", "method", "peft"))
    if "data" in sections and "evaluation" in sections:
        if sections.get("task_sequence"):
            replaced, derived["stage_tasks"] = lookup.task_sequence(
                sections["task_sequence"], sections["data"], sections["evaluation"], backbone=backbone
            )
            sections |= replaced
        data, names = sections["data"], sections["evaluation"].tasks
        trained = method is not None and method.trainable
        tasks = lookup.evaluation_tasks(names, data, backbone=backbone, trained=trained)
        derived |= {"tasks": tasks, "metrics": lookup.metric_modules({data.name: data, **tasks}.values())}
        in_sequence = bool(sections.get("task_sequence"))
        find_replayed = partial(lookup.replay_tasks, data=data, evaluated=names, in_sequence=in_sequence)
        if peft and peft.replay and backbone and trained:
            derived["replay_tasks"] = find_replayed(peft.replay, backbone=backbone)
        rehearsal = sections.get("rehearsal")
        if rehearsal and rehearsal.source != "none" and backbone and trained:
            found = find_replayed(rehearsal, key="rehearsal", backbone=backbone)
            derived["replay_tasks"] = derived.get("replay_tasks", {}) | found
            derived["prompts_hash"] = lookup.prompts_hash(rehearsal.prompts)
    folder = sections.get("frozen_adapter")
    if folder is not None and backbone and peft and "data" in sections:
        peft = sections["peft"] = imported_peft(folder, peft)
        derived["frozen_run"], errors = resolve_frozen_adapter(
            folder, backbone=backbone, peft=peft, data=sections["data"]
        )
        lookup.errors += errors
    return derived


def _cross_section_errors(sections: Mapping[str, Any]) -> Iterator[str]:
    for check in _CHECKS:
        names = inspect.signature(check).parameters
        if names.keys() <= sections.keys():
            yield from check(**{name: sections[name] for name in names})


def _backbone_path(backbone: BackboneConfig) -> Iterator[str]:
    path, prefix = backbone.name_or_path, f"backbone.name_or_path={backbone.name_or_path}"
    if path == MINIATURE:
        return
    if not is_local_path(path):
        if not _HUB_ID.fullmatch(path):
            fix = "give a Hub id (owner/name), a local folder, or imsm:miniature"
            yield f"{prefix}: is neither a Hub id nor an existing folder; {fix}"
    elif problem := _folder_problem(path):
        yield f"{prefix}: {problem}"
    elif not (Path(path) / "config.json").is_file():
        yield f"{prefix}: contains no model (config.json is missing)"


def _local_resolver(backbone: BackboneConfig) -> Iterator[str]:
    if backbone.local_resolver is None:
        return
    try:
        import_trusted(backbone.local_resolver, within=RESOLVERS, key="backbone.local_resolver")
    except UserError as error:
        yield str(error)


def _target_roles(peft: PeftConfig, backbone: BackboneConfig) -> Iterator[str]:
    roles, available = f"peft.target_roles={format_value(peft.target_roles)}", backbone.module_names
    for role in peft.target_roles:
        if not available.get(role):
            hint = did_you_mean(closest_match(role, available))
            yield f"{roles}: backbone={backbone.name} has no modules for {role} ({', '.join(available)}){hint}"
    try:
        accepted = accepts_target_modules(import_factory(peft.target))
    except UserError:
        return  # reported by `_peft_arguments`
    if accepted and not peft.target_roles:
        yield f"{roles}: needs at least one role, e.g. peft.target_roles=[attention_query]"
    if peft.target_roles and not accepted:
        yield f"{roles}: peft={peft.name} has no target modules; omit peft.target_roles"


def _peft_arguments(peft: PeftConfig, backbone: BackboneConfig) -> Iterator[str]:
    # An unknown role is reported by `_target_roles`, and has no modules to check with.
    if all(role in backbone.module_names for role in peft.target_roles):
        yield from adapter_errors(peft.target, peft.arguments(), peft.target_modules(backbone))


def _gate_arguments(gate: GateConfig) -> Iterator[str]:
    # The schema has the ranges of the shipped gate; for another class its signature is the schema.
    if gate.target == SHIPPED_GATE:
        known = [name for name in GateConfig.model_fields if name not in ("name", "target")]
        for name, value in (gate.model_extra or {}).items():
            yield unknown_key_error("gate", name, value, known)
        return
    try:
        gate_class = import_trusted(gate.target, within=GATES, key="gate._target_")
        yield from argument_errors("gate", gate_class, gate.arguments(), supplied=["hidden_size"])
    except UserError as error:
        yield str(error)


def _gate_loss(gate: GateConfig, method: MethodConfig, rehearsal: RehearsalConfig) -> Iterator[str]:
    """Reject a route loss without texts of the original, or without a gate that it can train."""
    if gate.loss == "lm" or method.stream != "interwoven":
        return
    if rehearsal.source == "none" or not rehearsal.weight:
        problem = "the gate learns its value 1 from texts of the original"
        yield f"gate.loss={gate.loss}: {problem}; set rehearsal=self (or replay) with a rehearsal.weight above 0"
    elif gate.loss == "route_kl" and rehearsal.loss != "kl":
        yield "gate.loss=route_kl: the second half of the steps needs the KL to the original; set rehearsal.loss=kl"
    if not gate.trainable:
        yield f"gate.loss={gate.loss}: gate={gate.name} is not trained; choose gate=query, or omit it"


def _float16(backbone: BackboneConfig, trainer: TrainerConfig, method: MethodConfig) -> Iterator[str]:
    """Allow training in float16 only with loss scaling: small gradients would be 0."""
    if not method.trainable:
        return
    if backbone.dtype == "float16" and trainer.mixed_precision is None:
        fix = "set trainer.mixed_precision=fp16 as well, or backbone.dtype=bfloat16"
        yield f"backbone.dtype=float16: small gradients would be 0 without loss scaling; {fix}"
    if backbone.dtype == "bfloat16" and trainer.mixed_precision == "fp16":
        yield "trainer.mixed_precision=fp16: contradicts backbone.dtype=bfloat16; set backbone.dtype=float16"


def _hostfile(engine: EngineConfig) -> Iterator[str]:
    if engine.hostfile is None or engine.nnodes == 1:
        return
    try:
        slots_per_node(engine.hostfile, nnodes=engine.nnodes, nproc_per_node=engine.nproc_per_node)
    except UserError as error:
        yield str(error)


def _data_folders(data: DataConfig) -> Iterator[str]:
    for key, path in (("mirror_dir", data.mirror_dir), ("local_dir", data.local_dir)):
        if key == "local_dir" and path is not None and os.path.isfile(path):
            continue
        if path is not None and (problem := _folder_problem(path)):
            yield f"data.{key}={path}: {problem}"


def _folder_problem(path: str) -> str | None:
    if os.path.isdir(path):
        return None
    return "is a file; give the folder that contains it" if os.path.exists(path) else "no such folder"


def _data_source(data: DataConfig, source_is_set: bool) -> Iterator[str]:
    """Reject an explicit `data.source` that contradicts the folders."""
    if not source_is_set:
        return
    # The default source is an interpolation that a folder overrides; only an explicit value can conflict.
    folders = {"mirror": data.mirror_dir, "local": data.local_dir}
    conflicts = {"hub": ("mirror", "local"), "miniature": ("mirror", "local"), "mirror": ("local",), "local": ()}
    for kind in conflicts[data.source]:
        if folders[kind] is not None:
            given = f"data.{kind}_dir={folders[kind]}"
            yield f"data.source={data.source}: contradicts {given}, which the target would be read from; omit one"


def _chat_template(data: DataConfig, backbone: BackboneConfig) -> Iterator[str]:
    if data.chat_template and backbone.name_or_path == MINIATURE:
        problem = "data.chat_template=true: the miniature's tokenizer has no chat template"
        yield f"{problem}; omit it, or choose an instruct model (backbone=llama3_1_instruct)"


def _closed_vocabulary(data: DataConfig, backbone: BackboneConfig) -> Iterator[str]:
    """Reject real text for the miniature, whose vocabulary has a few hundred words."""
    sources = (data.target_source(), data.forgetting_source(backbone)) if backbone.closed_vocabulary else ()
    for source in sources:
        if source.kind in ("hub", "mirror"):
            mirror = source.kind == "mirror"
            given = f"data.mirror_dir={source.path}" if mirror else f"data.source={source.kind}"
            fix = "omit it" if mirror else "data.source=miniature"
            yield (
                f"{given}: backbone={backbone.name} knows the words of its synthetic datasets only and cannot read "
                f"real text; choose backbone=gemma3_270m, or {fix}"
            )
            return


def _prefix_checkpointing(peft: PeftConfig, trainer: TrainerConfig) -> Iterator[str]:
    """Reject prefix tuning with gradient checkpointing, which drops the KV cache that holds the prefix."""
    try:
        if trainer.gradient_checkpointing and import_factory(peft.target).__name__ == "PrefixTuningConfig":
            problem = f"peft={peft.name} trains keys and values, which gradient checkpointing drops"
            yield f"trainer.gradient_checkpointing=true: {problem}; set trainer.gradient_checkpointing=false"
    except UserError:
        return  # reported by `_peft_arguments`


def _packing(peft: PeftConfig, trainer: TrainerConfig) -> Iterator[str]:
    if trainer.packing and peft.arguments().get("blc_weight"):
        problem = f"peft={peft.name} balances its experts over the rows of a batch, which packing joins"
        yield f"trainer.packing=true: {problem}; omit it, or set peft.blc_weight=0"


def _adapter_precision(backbone: BackboneConfig, trainer: TrainerConfig) -> Iterator[str]:
    if trainer.adapter_precision == "backbone" and backbone.dtype == "float32":
        yield "trainer.adapter_precision=backbone: has no effect with backbone.dtype=float32; omit it"


def _compiled_shards(engine: EngineConfig, trainer: TrainerConfig) -> Iterator[str]:
    if trainer.compile_layers and (engine.stage == 3 or engine.fsdp2):
        problem = f"engine={engine.name} gathers the weights of each layer by hooks, which are not compiled"
        yield f"trainer.compile_layers=true: {problem}; omit it, or set engine=zero2"


def _sharded(engine: EngineConfig, evaluation: EvaluationConfig) -> Iterator[str]:
    if engine.fsdp2 and evaluation.static_cache:
        problem = "engine=fsdp2 gathers the weights of each layer by hooks, which a CUDA graph does not run"
        yield f"evaluation.static_cache=true: {problem}; omit it"


def _quantization(backbone: BackboneConfig, engine: EngineConfig, evaluation: EvaluationConfig) -> Iterator[str]:
    given = f"backbone.quantization={backbone.quantization}"
    if backbone.quantization is not None and (engine.stage == 3 or engine.fsdp2):
        yield f"{given}: 4-bit weights cannot be sharded by engine={engine.name}; set engine=single or zero2, or null"
    if backbone.quantization is not None and evaluation.backend == "vllm":
        yield f"{given}: evaluation.backend=vllm would answer with the unquantized model; omit one of the two"


def _checkpoints(evaluation: EvaluationConfig, trainer: TrainerConfig) -> Iterator[str]:
    if evaluation.checkpoints and trainer.save_steps is None:
        yield "evaluation.checkpoints=true: evaluates the models at fixed steps; set trainer.save_steps as well"


def _backend(evaluation: EvaluationConfig) -> Iterator[str]:
    python = os.environ.get("IMSM_VLLM_PYTHON", "")
    if evaluation.backend == "vllm" and not os.access(python, os.X_OK):
        yield (
            f"evaluation.backend=vllm: IMSM_VLLM_PYTHON={python or 'is not set'}; set it to the interpreter of vLLM's "
            "environment (docs/guides/vllm.md), or omit evaluation.backend"
        )


def _resume(resume: str) -> Iterator[str]:
    if resume not in _RESUME and not os.path.isdir(resume):
        match = closest_match(resume, _RESUME)
        hint = did_you_mean(match and f"resume={match}")
        yield f"resume={shorten(resume)}: must be {', '.join(_RESUME)} or the folder of a checkpoint{hint}"


def _task_sequence(
    task_sequence: list[str] | None, peft: PeftConfig, rehearsal: RehearsalConfig, run_dir: str | None, resume: str
) -> Iterator[str]:
    if task_sequence is None:
        return
    given = f"task_sequence={format_value(task_sequence)}"
    for name in dict.fromkeys(task_sequence):
        if task_sequence.count(name) > 1:
            yield f"{given}: {name} is named twice; name each task once"
    if len(task_sequence) < 2:
        yield f"{given}: needs at least two tasks; for one, use data={task_sequence[0] if task_sequence else 'gsm8k'}"
    if run_dir is not None:
        yield f"run_dir={run_dir}: each stage of {given} has its own folder; omit it, or set IMSM_RUNS for all of them"
    if resume not in ("auto", "never"):
        fix = "use resume=auto, or resume=never to restart the unfinished stage"
        yield f"resume={resume}: {given} resumes at the unfinished stage; {fix}"
    if peft.replay is not None:
        problem = f"replays examples of {peft.replay.task} for a single target, not for {given}"
        yield f"peft={peft.name}: {problem}; choose a method without replay"
    if rehearsal.source == "replay":
        problem = f"replays examples of {rehearsal.task} for a single target, not for {given}"
        yield f"rehearsal={rehearsal.name}: {problem}; choose rehearsal=self"


def _rehearsal(rehearsal: RehearsalConfig, peft: PeftConfig) -> Iterator[str]:
    if rehearsal.source == "replay" and peft.replay is not None:
        problem = f"peft={peft.name} replays examples of {peft.replay.task} already"
        yield f"rehearsal={rehearsal.name}: {problem}; choose rehearsal=self or none"


def _training_split(data: DataConfig, method: MethodConfig) -> Iterator[str]:
    if method.trainable and not data.splits.get("train"):
        fix = "choose another target (mrpc, cola, ropes, gsm8k), or method=original to evaluate only"
        yield f"data={data.name}: has no split to train on; {fix}"


def _evaluated_run(mode: str, run_dir: str | None) -> Iterator[str]:
    if mode == "evaluate" and run_dir is not None and not os.path.isdir(run_dir):
        yield f"run_dir={run_dir}: no such run to evaluate"


def _protocol(evaluation: EvaluationConfig, tasks: Mapping[str, Task]) -> Iterator[str]:
    for name, task in tasks.items() if evaluation.protocol == "paper_code" else ():
        if not task.paper_code_metrics:
            problem = f"data={name} has no paper_code_metrics (nor has any dataset with data.metric)"
            yield f"evaluation.protocol=paper_code: {problem}; use evaluation.protocol=strict"


def _limit_by_task(evaluation: EvaluationConfig, data: DataConfig) -> Iterator[str]:
    # Results are stored under the dataset's name, and limits are looked up by it, not by "target".
    evaluated = [data.name if name == TARGET else name for name in evaluation.tasks]
    for name, limit in (evaluation.limit_by_task or {}).items():
        if name not in evaluated:
            yield f"evaluation.limit_by_task.{name}={limit}: {name} is not evaluated ({', '.join(evaluated)})"


# The order of the messages; parameters are matched to sections by name.
_CHECKS: tuple[Callable[..., Iterator[str]], ...] = (
    _backbone_path,
    _local_resolver,
    _target_roles,
    _peft_arguments,
    _gate_arguments,
    _gate_loss,
    _float16,
    _hostfile,
    _limit_by_task,
    _data_folders,
    _chat_template,
    _prefix_checkpointing,
    _packing,
    _adapter_precision,
    _compiled_shards,
    _sharded,
    _quantization,
    _checkpoints,
    _backend,
    _resume,
    _task_sequence,
    _rehearsal,
    _data_source,
    _closed_vocabulary,
    _training_split,
    _evaluated_run,
    _protocol,
    frozen_adapter_conflicts,
)
