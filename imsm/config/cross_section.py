"""What one part of a configuration demands of another, and what must be there on disk.

Each check names the sections that it reads as its arguments and returns a line per problem; it is
left out where one of them is not valid by itself, so that all other problems still show.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peft import PrefixTuningConfig

from imsm.config.frozen_adapter import check_gate, check_method, check_sequence, resolve_frozen_adapter
from imsm.config.schema import (
    SHIPPED_GATE,
    BackboneConfig,
    DataConfig,
    EngineConfig,
    EvaluationConfig,
    GateConfig,
    MethodConfig,
    PeftConfig,
    TrainerConfig,
    is_local,
)
from imsm.distributed.multi_node import slots_per_node
from imsm.models.adapters.base import adapter_errors
from imsm.models.backbones.loading import MINIATURE
from imsm.utils.errors import UserError
from imsm.utils.instantiate import accepts_target_modules, argument_errors, import_target
from imsm.utils.messages import format_value, unknown_key_error
from imsm.utils.options import closest_match

if TYPE_CHECKING:
    from omegaconf import DictConfig

_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
_RESUME = ("auto", "required", "never")
_STREAM_MEMORIES = ({"original"}, {"tuned"}, {"original", "tuned"})


def validate_cross_section(
    sections: Mapping[str, Any], *, cfg: DictConfig, config_dir: Path | None
) -> tuple[dict[str, Any], list[str]]:
    """Run every check whose sections are there.

    Args:
        sections: the valid sections and top-level values by name.
        cfg: what Hydra composed, for the interpolations in the options that are looked up.
        config_dir: the folder of options of one's own.

    Returns:
        The derived values (`tasks`, `replay_tasks`, `frozen_run`, `metrics`, `config_dir`) and a
        line per problem.
    """
    from imsm.config.tasks import resolve_replay_tasks, resolve_tasks

    errors: list[str] = []
    sections = {**sections, "config_dir": config_dir}
    for check in _CHECKS:
        names = inspect.signature(check).parameters
        if all(name in sections for name in names):
            errors += check(**{name: sections[name] for name in names})
    found: dict[str, Any] = {"config_dir": str(config_dir) if config_dir else None}
    if "data" in sections and "evaluation" in sections:
        tasks, metrics, more = resolve_tasks(
            data=sections["data"],
            names=sections["evaluation"].tasks,
            backbone=sections.get("backbone"),
            trained="method" in sections and sections["method"].trainable,
            cfg=cfg,
            config_dir=config_dir,
        )
        found |= {"tasks": tasks, "metrics": metrics}
        errors += more + _protocol(sections["evaluation"], tasks)
    peft = sections.get("peft")
    needed = ("data", "backbone", "method", "evaluation")
    if peft and peft.replay and all(n in sections for n in needed) and sections["method"].trainable:
        found["replay_tasks"], more = resolve_replay_tasks(
            peft.replay,
            data=sections["data"],
            judged=sections["evaluation"].tasks,
            backbone=sections["backbone"],
            cfg=cfg,
            config_dir=config_dir,
        )
        errors += more
    frozen = sections.get("frozen_adapter")
    if frozen is not None and all(name in sections for name in ("backbone", "peft", "data")):
        found["frozen_run"], more = resolve_frozen_adapter(
            frozen, backbone=sections["backbone"], peft=sections["peft"], data=sections["data"]
        )
        errors += more
    return found, errors


def _backbone_path(backbone: BackboneConfig) -> list[str]:
    path = backbone.name_or_path
    if path == MINIATURE:
        return []
    if is_local(path):
        if not Path(path).is_dir():
            return [f"backbone.name_or_path={path}: there is no such folder"]
        if not (Path(path) / "config.json").is_file():
            return [f"backbone.name_or_path={path}: holds no model (no config.json in it)"]
    elif not _HUB_ID.fullmatch(path):
        fix = "give a hub id (owner/name), a local folder, or imsm:miniature"
        return [f"backbone.name_or_path={path}: is no hub id and no folder; {fix}"]
    return []


def _backbone_local(backbone: BackboneConfig, config_dir: Path | None) -> list[str]:
    """Nothing but code of imsm or of one's own folder is called to find a backbone's weights."""
    dotted = backbone.local_resolver
    if dotted is None:
        return []
    if not _is_trusted(dotted, config_dir):
        return [
            f"backbone.local_resolver={dotted}: must be a function of imsm, or of a module in the folder "
            "given by --config-dir"
        ]
    try:
        import_target(dotted)
    except UserError as error:
        return [f"backbone.local_resolver={error}"]
    return []


def _is_trusted(dotted: str, config_dir: Path | None) -> bool:
    """Whether a dotted name is part of imsm or of a module in the --config-dir folder."""
    top = dotted.partition(".")[0]
    files = (f"{top}.py", f"{top}/__init__.py")
    return top == "imsm" or (config_dir is not None and any((config_dir / name).is_file() for name in files))


def _peft_roles(peft: PeftConfig, backbone: BackboneConfig) -> list[str]:
    errors = []
    for role in peft.target_roles:
        if not backbone.module_names.get(role):
            guess = closest_match(role, backbone.module_names)
            hint = f"; did you mean {guess}?" if guess else ""
            named = ", ".join(backbone.module_names)
            errors.append(
                f"peft.target_roles={format_value(peft.target_roles)}: backbone={backbone.name} has no modules for "
                f"{role} ({named}){hint}"
            )
    return errors


def _peft_targets(peft: PeftConfig) -> list[str]:
    """A method has roles exactly if its builder takes target modules."""
    try:
        takes = accepts_target_modules(import_target(peft.target))
    except UserError:
        return []  # said elsewhere
    if takes and not peft.target_roles:
        return ["peft.target_roles=[]: needs at least one role, e.g. peft.target_roles=[attention_query]"]
    if peft.target_roles and not takes:
        return [
            f"peft.target_roles={format_value(peft.target_roles)}: peft={peft.name} changes no module; leave "
            "peft.target_roles out"
        ]
    return []


def _peft_arguments(peft: PeftConfig, backbone: BackboneConfig, config_dir: Path | None) -> list[str]:
    if not (peft.target.startswith("peft.") or _is_trusted(peft.target, config_dir)):
        return [
            f"peft._target_={peft.target}: must be a configuration class of PEFT (peft.LoraConfig), a function of "
            "imsm, or one of a module in the folder given by --config-dir"
        ]
    if not all(role in backbone.module_names for role in peft.target_roles):
        return []  # reported by `_peft_roles`
    return adapter_errors(peft.target, peft.arguments(), peft.target_modules(backbone))


def _gate_arguments(gate: GateConfig) -> list[str]:
    if gate.target == SHIPPED_GATE:
        known = [name for name in GateConfig.model_fields if name not in ("name", "target")]
        extra = gate.model_extra or {}
        return [unknown_key_error("gate", name, value, known) for name, value in extra.items()]
    try:
        builder = import_target(gate.target)
    except UserError as error:
        return [f"gate._target_={error}"]
    return argument_errors("gate", builder, gate.arguments(), supplied=["hidden_size"])


def _gate_shape(gate: GateConfig) -> list[str]:
    if gate.target != SHIPPED_GATE:
        return []
    errors = []
    if len(set(gate.inputs)) < len(gate.inputs):
        errors.append(f"gate.inputs={format_value(gate.inputs)}: each input only once")
    if gate.inputs and gate.rank is None:
        errors.append("gate.rank=null: a gate with inputs needs a rank; gate.rank=8 is the paper's")
    if not gate.inputs and gate.rank is not None:
        errors.append(
            f"gate.rank={gate.rank}: gate={gate.name} reads no inputs, so it has no rank; "
            "leave gate.rank out, or choose gate=query"
        )
    if gate.inputs and not gate.trainable:
        errors.append(
            "gate.trainable=false: a gate with inputs has random weights until it is trained; "
            "choose gate=no_gate for a gate that is not trained"
        )
    if gate.init_value is not None:
        errors += _gate_value(gate)
    if gate.query_scale is not None and set(gate.inputs) not in _STREAM_MEMORIES:
        errors.append(
            f"gate.query_scale={gate.query_scale}: the query is added to the memories of the "
            "streams, so gate.inputs must be [original], [tuned] or both; choose gate=additive"
        )
    return errors


def _gate_value(gate: GateConfig) -> list[str]:
    if gate.inputs or gate.bias is not None:
        return [
            f"gate.init_value={gate.init_value}: only a gate without inputs and without a bias has a value; "
            "set gate.bias for the start of a gate with inputs, or choose gate=constant"
        ]
    if gate.trainable and gate.init_value in (0, 1):
        return [
            f"gate.init_value={gate.init_value}: a trained gate cannot leave 0 or 1; choose a value between "
            "them, or gate=constant"
        ]
    return []


def _method(method: MethodConfig) -> list[str]:
    if method.trainable == (method.stream == "original"):
        right = "false" if method.trainable else "true"
        return [
            f"method.trainable={format_value(method.trainable)}: the {method.stream} stream needs "
            f"method.trainable={right}; choose method=original, peft or imsm"
        ]
    return []


def _batch(trainer: TrainerConfig) -> list[str]:
    micro, batch = trainer.micro_batch_size, trainer.global_batch_size
    if micro is None or batch % micro == 0:
        return []
    fitting = max(size for size in range(1, batch + 1) if batch % size == 0 and size <= micro)
    return [
        f"trainer.global_batch_size={batch}: must be a multiple of trainer.micro_batch_size={micro}; "
        f"set trainer.micro_batch_size={fitting}"
    ]


def _engine(engine: EngineConfig) -> list[str]:
    """A hostfile that cannot be used is told before anything is loaded."""
    if engine.hostfile is None:
        return []
    if engine.nnodes == 1:
        return [f"engine.hostfile={engine.hostfile}: is for several nodes; set engine.nnodes as well, or leave it out"]
    try:
        slots_per_node(engine.hostfile, nnodes=engine.nnodes, nproc_per_node=engine.nproc_per_node)
    except UserError as error:
        return [str(error)]
    return []


def _best_by(trainer: TrainerConfig) -> list[str]:
    if trainer.metric_for_best_model is None:
        return []
    errors = []
    if trainer.save_steps is None:
        errors.append(
            f"trainer.metric_for_best_model={trainer.metric_for_best_model}: compares checkpoints at fixed steps; set "
            "trainer.save_steps as well"
        )
    if trainer.validation_size is None:
        errors.append(
            f"trainer.metric_for_best_model={trainer.metric_for_best_model}: set trainer.validation_size as well"
        )
    return errors


def _kl(trainer: TrainerConfig) -> list[str]:
    if trainer.kl_mask_target and trainer.kl_beta is None:
        return [
            "trainer.kl_mask_target=true: leaves the right token out of a term that is not there; "
            "set trainer.kl_beta as well"
        ]
    return []


def _places(data: DataConfig) -> list[str]:
    return [
        f"data.{key}={path}: there is no such folder"
        for key, path in (("mirror_dir", data.mirror_dir), ("local_dir", data.local_dir))
        if path is not None and not Path(path).is_dir()
    ]


def _chat_template(data: DataConfig, backbone: BackboneConfig) -> list[str]:
    if not data.chat_template or backbone.name_or_path != MINIATURE:
        return []
    return [
        "data.chat_template=true: the miniature's tokenizer has no chat template; leave it out, or "
        "choose an instruct model (backbone=llama3_1_instruct)"
    ]


def _prefix_checkpointing(peft: PeftConfig, trainer: TrainerConfig) -> list[str]:
    """Learned keys and values stand in a cache, which gradient checkpointing does not carry."""
    if not trainer.gradient_checkpointing:
        return []
    try:
        if import_target(peft.target) is not PrefixTuningConfig:
            return []
    except UserError:
        return []  # reported by `_peft_arguments`
    return [
        f"trainer.gradient_checkpointing=true: peft={peft.name} learns keys and values, which it "
        "would drop; set trainer.gradient_checkpointing=false"
    ]


def _resume(resume: str) -> list[str]:
    if resume in _RESUME or Path(resume).is_dir():
        return []
    guess = closest_match(resume, _RESUME)
    hint = f"; did you mean resume={guess}?" if guess else ""
    return [f"resume={resume}: must be auto, must, never or the folder of a checkpoint{hint}"]


def _sequence(sequence: list[str] | None, peft: PeftConfig, folder: str | None, resume: str) -> list[str]:
    if sequence is None:
        return []
    given = f"task_sequence={format_value(sequence)}"
    errors = [
        f"{given}: {name} is named twice; each task once"
        for name in dict.fromkeys(sequence)
        if sequence.count(name) > 1
    ]
    if len(sequence) < 2:
        instead = f"data={sequence[0]}" if sequence else "data=gsm8k"
        errors.append(f"{given}: needs at least two tasks; for one, {instead}")
    if folder is not None:
        errors.append(
            f"run_dir={folder}: each stage of {given} has a folder of its own; leave it out, or "
            "choose their root by IMSM_RUNS"
        )
    if resume not in ("auto", "never"):
        errors.append(
            f"resume={resume}: {given} goes on where it stopped; use resume=auto, or never to "
            "begin the unfinished stage anew"
        )
    if peft.replay is not None:
        errors.append(
            f"peft={peft.name}: replays questions of {peft.replay.task} beside one target, not "
            f"beside {given}; choose a method without replay"
        )
    return errors


def _source(data: DataConfig, source_given: bool) -> list[str]:
    errors = []
    for kind in ("mirror", "local"):
        if data.source == kind and getattr(data, f"{kind}_dir") is None:
            errors.append(f"data.source={kind}: give data.{kind}_dir=... as well")
    if source_given and data.source in ("hub", "miniature"):
        for kind in ("mirror", "local"):
            path = getattr(data, f"{kind}_dir")
            if path is not None:
                errors.append(
                    f"data.source={data.source}: together with data.{kind}_dir={path} it is not clear "
                    "what to read; leave one of the two out"
                )
    if source_given and data.source == "mirror" and data.local_dir is not None:
        errors.append(
            f"data.source=mirror: together with data.local_dir={data.local_dir} it is not clear what the "
            "target is; leave data.source out"
        )
    kind = data.target_source().kind
    if data.hub is None and kind in ("hub", "mirror", "miniature"):
        errors.append(
            f"data={data.name}: is not on the hub; give data.local_dir=<a folder with train.jsonl "
            'and test.jsonl of {"input", "output"} lines>'
        )
    return errors


def _vocabulary(data: DataConfig, backbone: BackboneConfig) -> list[str]:
    """The miniature knows some hundred words; real text is refused before anything is loaded."""
    if not backbone.closed_vocabulary:
        return []
    sources = (data.target_source(), data.forgetting_source(backbone))
    real = next((source for source in sources if source.kind in ("hub", "mirror")), None)
    if real is None:
        return []
    given = f"data.mirror_dir={real.path}" if real.kind == "mirror" else f"data.source={real.kind}"
    instead = "leave it out" if real.kind == "mirror" else "data.source=miniature"
    return [
        f"{given}: backbone={backbone.name} knows the words of its miniature world only and cannot "
        f"read real text; choose backbone=gemma3_270m, or {instead}"
    ]


def _trainable(data: DataConfig, method: MethodConfig) -> list[str]:
    if not method.trainable or data.splits.get("train"):
        return []
    return [
        f"data={data.name}: has no split to train on; choose another target "
        "(mrpc, cola, ropes, gsm8k), or method=original to judge only"
    ]


def _finished_run(mode: str, folder: str | None) -> list[str]:
    if mode == "evaluate" and folder is not None and not Path(folder).is_dir():
        return [f"run_dir={folder}: there is no such run to evaluate"]
    return []


def _protocol(evaluation: EvaluationConfig, tasks: Mapping[str, Any]) -> list[str]:
    """The released protocol has metrics for the paper's datasets only."""
    if evaluation.protocol == "strict":
        return []
    return [
        f"evaluation.protocol=paper_code: data={name} has no paper_code_metrics (nor has any dataset "
        "with data.metric); use evaluation.protocol=strict"
        for name, task in tasks.items()
        if not task.paper_code_metrics
    ]


def _items_by_task(evaluation: EvaluationConfig, data: DataConfig) -> list[str]:
    asked = [data.name if name == "target" else name for name in evaluation.tasks]
    return [
        f"evaluation.limit_by_task.{name}={number}: {name} is not asked ({', '.join(asked)})"
        for name, number in (evaluation.limit_by_task or {}).items()
        if name not in asked
    ]


_CHECKS: tuple[Callable[..., list[str]], ...] = (
    _backbone_path,
    _backbone_local,
    _peft_roles,
    _peft_targets,
    _peft_arguments,
    _gate_arguments,
    _gate_shape,
    _method,
    _batch,
    _best_by,
    _kl,
    _engine,
    _items_by_task,
    _places,
    _chat_template,
    _prefix_checkpointing,
    _resume,
    _sequence,
    check_method,
    check_gate,
    check_sequence,
    _source,
    _vocabulary,
    _trainable,
    _finished_run,
)
