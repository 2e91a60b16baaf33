"""Run identity (all settings that affect training), run name, and comparable runs."""

import json
import re
from collections.abc import Mapping
from typing import Any

from imsm.config.schema import BackboneConfig, DataConfig, MethodConfig, PeftConfig, RunConfig, TrainerConfig
from imsm.utils.hashing import hash_text

# Up to rounding, results do not depend on these (but see `_micro_batch_identity`): a resumed run may change them.
_UNRELATED = {"name", "method_specific_keys", "micro_batch_size", "gradient_checkpointing"}
_UNRELATED |= {"save_minutes", "save_steps", "save_total_limit", "watch_items", "micro_batch_tokens", "packing"}
# Newer options, omitted at their defaults so that the names of finished runs stay stable.
_OMITTED_IF_DEFAULT = (
    *("validation_size", "metric_for_best_model", "kl_beta", "kl_mask_target", "group_by_length", "loss_reduction"),
    *("carry_over", "warmup_rounding", "truncation", "max_prompt_tokens", "max_answer_tokens", "mixed_precision"),
    *("token_weight", "min_target", "deterministic"),
    *("adapter_precision", "compile_layers", "liger_kernel"),
)


def run_identity(config: RunConfig) -> dict[str, Any]:
    """Return all settings that affect training, as JSON types.

    Evaluation, logger, engine, mode and run_dir are not included. The identities of the previous
    stage and of the frozen adapter's run are. Without training, the identity is that of the backbone.
    """
    backbone = backbone_identity(config.backbone, config.data)
    # The original is shared: runs of all methods with one backbone compare with the same baseline.
    if not config.method.trainable:
        return {"backbone": backbone, "method": {"stream": config.method.stream}}
    if config.is_imported:
        return {"backbone": backbone, "adapter": config.peft.arguments(), "method": {"stream": config.method.stream}}
    identity: dict[str, Any] = {
        "backbone": backbone,
        "peft": peft_identity(config.peft, backbone=config.backbone, data=config.data),
        "data": _data_identity(config),
        "method": {"stream": config.method.stream},
        "trainer": _trainer_identity(config),
        "seed": config.seed,
    }
    if config.rehearsal.source != "none":
        identity["rehearsal"] = rehearsal_identity(config)
    if config.previous_stage is not None:
        identity["previous_stage"] = config.previous_stage.identity
    if config.frozen_run is not None:
        identity["frozen_adapter"] = config.frozen_run.identity
    # Only IMSM has a gate: its settings must not give equal PEFT runs different names.
    if config.method.stream != "interwoven":
        del identity["trainer"]["gate_learning_rate"]
        return identity
    gate = {"_target_": config.gate.target, "pooling": config.gate.pooling}
    arguments = config.gate.arguments()
    skip = {"skip_threshold": config.gate.skip_threshold} if config.gate.skip else {}
    gate |= {"loss": config.gate.loss} if config.gate.loss != "lm" else {}
    return identity | {"gate": gate | skip | arguments | _micro_batch_identity(arguments, config)}


def parent_trainings(config: RunConfig) -> list[dict[str, Any]]:
    """Return the identities of all trainings before the run's own, in order."""
    parents = [parent for parent in (config.previous_stage, config.frozen_run) if parent is not None]
    return [identity for parent in parents for identity in training_chain(parent.identity)]


def training_chain(identity: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the identities of all trainings of a run's model, in order, its own last.

    They are the previous stages of a sequence, the frozen adapter's training and its own parents. The training of an
    imported adapter is unknown.
    """
    parents = [identity[key] for key in ("previous_stage", "frozen_adapter") if key in identity]
    own = [] if is_imported(identity) else [dict(identity)]
    return [*(each for parent in parents for each in training_chain(parent)), *own]


def backbone_identity(backbone: BackboneConfig, data: DataConfig) -> dict[str, Any]:
    """Return the settings that affect the responses of the original model."""
    keys = {"name_or_path", "revision", "dtype", "attn_implementation", "local_resolver"}
    # The key is omitted at its default, which keeps the names of runs from before it existed.
    values = backbone.model_dump(mode="json", include=keys)
    values |= {"quantization": backbone.quantization} if backbone.quantization is not None else {}
    return values | ({"chat_template": True} if data.chat_template else {})


def peft_identity(peft: PeftConfig, *, backbone: BackboneConfig, data: DataConfig) -> dict[str, Any]:
    """Return the PEFT method's target, modules, arguments, replay and method-specific keys."""
    values = {"_target_": peft.target, "target_modules": peft.target_modules(backbone), **peft.arguments()}
    values |= {"method_specific_keys": list(peft.method_specific_keys)} if peft.method_specific_keys else {}
    if peft.replay is not None:
        source = data.forgetting_source(backbone).record()
        values["replay"] = peft.replay.model_dump(mode="json") | {"source": source}
    return values


def rehearsal_identity(config: RunConfig) -> dict[str, Any]:
    """Return the settings of rehearsal; a file of prompts is identified by its content."""
    values = config.rehearsal.own_values() | {"data": config.data.forgetting_source(config.backbone).record()}
    return values | ({"prompts": config.prompts_hash} if config.prompts_hash is not None else {})


def replay_identity(training: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return task, ratio, excluded tests and source of a training's replay, of `peft.replay` or of `rehearsal`.

    ``training`` is its `run_identity`; None without replay.
    """
    rehearsal = training.get("rehearsal", {})
    if rehearsal.get("source") != "replay":
        replay: dict[str, Any] | None = training["peft"].get("replay")
        return replay
    return {key: rehearsal[key] for key in ("task", "ratio", "exclude_tests")} | {"source": rehearsal["data"]}


def run_name(config: RunConfig) -> str:
    """Return the name of the run directory: option names and eight digits of the identity's hash.

    Examples: ``mini-lora-gsm8k-imsm-query-r8-s0-1a2b3c4d``, ``mini-original-5e6f7a8b``,
    ``mini-lora-gsm8k_mrpc-peft-s0-9a0b1c2d`` (a later stage of a sequence),
    ``mini-lora-gsm8k-imsm-frozen-query-r8-s0-3e4f5a6b`` (with a frozen adapter),
    ``mini-lora-gsm8k-peft-self_kl-s0-5d6e7f8a`` (with rehearsal),
    ``mini-lora-imported-7c8d9e0f`` (an adapter that was trained elsewhere).
    """
    parts = [config.backbone.name]
    if config.is_imported:
        parts += [config.peft.name, "imported"]
    elif config.method.trainable:
        tasks = [*(config.previous_stage.tasks if config.previous_stage else []), config.data.name]
        parts += [config.peft.name, "_".join(tasks), config.method.name]
        parts += ["frozen"] if config.frozen_run is not None else []
        rehearsal = config.rehearsal
        parts += [f"{rehearsal.name}_{rehearsal.loss}"] if rehearsal.source != "none" else []
        if config.method.stream == "interwoven":
            parts.append(config.gate.name)
            parts += [f"r{config.gate.rank}"] if config.gate.rank else []
        parts.append(f"s{config.seed}")
    else:
        parts.append(config.method.name)
    # The exact text is part of the run name: other separators or an unsorted dict would rename all runs.
    text = json.dumps(run_identity(config), sort_keys=True, ensure_ascii=False)
    parts.append(hash_text(text)[:8])
    return "-".join(re.sub(r"[^\w.]+", "_", part) for part in parts)


def baseline_config(config: RunConfig) -> RunConfig:
    """Return the configuration of the run's original model."""
    method = MethodConfig(name="original", stream="original", trainable=False)
    return config.model_copy(update={"method": method, "run_dir": None})


def original_run(saved: Mapping[str, Any]) -> tuple[str, dict[str, Any], dict[str, Any]]:
    """Return name, identity and configuration of the original of a run's `RunConfig.to_dict()`.

    Raises:
        pydantic.ValidationError: The configuration is of another version.
    """
    config = baseline_config(RunConfig.from_dict(saved))
    return run_name(config), run_identity(config), config.to_dict()


def comparable_up_to_method(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Return whether two runs differ in nothing but the method, so that their scores are comparable.

    Keys that a recipe or a PEFT method sets per method (`method_specific_keys`) belong to the method.
    The original is comparable to every run with its backbone. A gate on a frozen adapter is
    comparable to the PEFT run that the adapter is from, whatever the gate was trained on, and to
    jointly trained IMSM with the settings of both trainings. The arguments are results of `run_identity`.
    """
    if is_original(one) or is_original(other):
        return bool(one["backbone"] == other["backbone"])
    frozen, joint = (one, other) if "frozen_adapter" in one else (other, one)
    if "frozen_adapter" in frozen and "frozen_adapter" not in joint:
        # The gate's training and the adapter's are two trainings; joint training has to match both.
        reference = _without_method(joint)
        gate_training = {key: value for key, value in frozen.items() if key != "frozen_adapter"}
        same_adapter = _without_method(frozen["frozen_adapter"]) == reference
        is_peft = joint["method"]["stream"] == "tuned"
        return same_adapter and (is_peft or _without_method(gate_training) == reference)
    return _without_method(one) == _without_method(other)


def is_original(identity: Mapping[str, Any]) -> bool:
    """Return whether an identity is that of a run without training."""
    return bool(identity["method"]["stream"] == "original")


def is_imported(identity: Mapping[str, Any]) -> bool:
    """Return whether an identity is that of an adapter that was trained elsewhere."""
    return "adapter" in identity


def identity_without_seed(identity: Mapping[str, Any]) -> dict[str, Any]:
    """Return an identity without its seed, so that runs of other seeds are equal.

    The seed of a parent training is removed as well if it is the same.
    """
    rest = {key: value for key, value in identity.items() if key != "seed"}
    for key in ("previous_stage", "frozen_adapter"):
        parent = rest.get(key)
        if parent is not None and parent.get("seed") == identity.get("seed"):
            rest[key] = identity_without_seed(parent)
    return rest


def _without_method(identity: Mapping[str, Any]) -> dict[str, Any]:
    rest = {key: value for key, value in identity.items() if key not in ("method", "gate")}
    # an imported adapter has neither
    sections = () if is_imported(identity) else (("trainer", {"gate_learning_rate"}), ("peft", set()))
    for section, also in sections:
        values = identity[section]
        excluded = also | set(values.get("method_specific_keys", []))
        rest[section] = {key: value for key, value in values.items() if key not in excluded}
    if "previous_stage" in rest:
        rest["previous_stage"] = _without_method(rest["previous_stage"])
    return rest


def _trainer_identity(config: RunConfig) -> dict[str, Any]:
    """Return the recipe; with method-specific keys also their names and the recipe's."""
    recipe = config.trainer.model_dump(mode="json", exclude=_UNRELATED)
    for key in _OMITTED_IF_DEFAULT:
        if recipe[key] == TrainerConfig.model_fields[key].default:
            del recipe[key]
    # The best model is chosen among the checkpoints at these steps, so here they affect the result.
    if "metric_for_best_model" in recipe:
        recipe["save_steps"] = config.trainer.save_steps
    if recipe.get("metric_for_best_model") == "retention":
        recipe["watch_items"] = config.trainer.watch_items
        tasks = {**config.tasks, config.data.name: config.data}
        recipe["watch_metrics"] = {name: task.metrics[0] for name, task in sorted(tasks.items())}
    if config.trainer.method_specific_keys:
        recipe |= {"name": config.trainer.name, "method_specific_keys": list(config.trainer.method_specific_keys)}
    return recipe | _micro_batch_identity(config.peft.arguments(), config)


def _micro_batch_identity(arguments: Mapping[str, Any], config: RunConfig) -> dict[str, Any]:
    """Return the micro-batch size if the arguments of an adapter or gate, or the loss, depend on it.

    Dropout draws masks per micro-batch; LoRAMoE's balancing loss is not a sum over examples.
    """
    # By suffix, because PEFT's methods name the rate differently (lora_dropout, module_dropout, ...).
    dropout = any(rate and not isinstance(rate, bool) for key, rate in arguments.items() if key.endswith("dropout"))
    if not (dropout or arguments.get("blc_weight") or config.trainer.loss_reduction == "micro_batches"):
        return {}
    recipe = config.trainer
    if recipe.micro_batch_tokens is not None:
        return {"micro_batch_tokens": recipe.micro_batch_tokens, "packing": recipe.packing}
    return {"micro_batch_size": recipe.micro_batch_size or recipe.global_batch_size}


def _data_identity(config: RunConfig) -> dict[str, Any]:
    """Return the settings of the training data, without metrics and the other tasks' sources."""
    keys = {"name", "module", "hub", "prompt_style", "max_train_examples", "max_prompt_tokens", "max_new_tokens"}
    values = config.data.model_dump(mode="json", include=keys)
    source = config.data.target_source()
    # Local data replaces the Hub dataset, so that its id and revision have no effect.
    if source.kind == "local":
        del values["hub"]
    if config.data.task_type:
        values["task_type"] = config.data.task_type
    return values | {"splits": config.data.splits.get("train", []), "source": source.record()}
