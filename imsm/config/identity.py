"""What makes a run the same run: the choices that decide its training, and their name."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from imsm.config.schema import BackboneConfig, DataConfig, MethodConfig, PeftConfig, RunConfig
from imsm.utils.hashing import hash_text

# Where the work is done and how often it is saved changes a result by rounding only: it may change
# between a run and its continuation. So may the size of the micro-batches, unless there is a
# dropout or a constraint on whole micro-batches (`_dropout_cut`).
_NOT_DECIDING = {"name", "method_specific_keys", "micro_batch_size", "gradient_checkpointing"}
_NOT_DECIDING |= {"save_minutes", "save_steps", "save_total_limit"}
# Choices that were not always there: not made, they leave finished runs their names.
_NOT_THERE = ("validation_size", "metric_for_best_model", "kl_beta", "kl_mask_target", "group_by_length")


def run_identity(config: RunConfig) -> dict[str, Any]:
    """Everything that decides the training, as plain values.

    Left out are evaluation, tracker, engine, mode and folder. A stage of a sequence has the
    identity of the stage before it in its own, and so has a run the identity of the one whose
    adapter it takes as it is. Where nothing is trained, the backbone alone counts, and the way in
    which it is asked.
    """
    backbone = backbone_identity(config.backbone, config.data)
    if not config.method.trainable:
        return {"backbone": backbone, "method": {"stream": config.method.stream}}
    identity: dict[str, Any] = {
        "backbone": backbone,
        "peft": peft_identity(config.peft, backbone=config.backbone, data=config.data),
        "data": _data(config),
        "method": {"stream": config.method.stream},
        "trainer": _trainer(config),
        "seed": config.seed,
    }
    if config.previous_stage is not None:
        identity["previous_stage"] = config.previous_stage.identity
    if config.frozen_run is not None:
        identity["frozen_adapter"] = config.frozen_run.identity
    if config.method.stream != "interwoven":
        del identity["trainer"]["gate_learning_rate"]
        return identity
    gate = {"_target_": config.gate.target, "pooling": config.gate.pooling}
    arguments = config.gate.arguments()
    return identity | {"gate": gate | arguments | _dropout_cut(arguments, config)}


def parent_trainings(config: RunConfig) -> list[dict[str, Any]]:
    """The identities of the trainings whose values a run starts from or keeps, the first first."""
    origins = [each for each in (config.previous_stage, config.frozen_run) if each is not None]
    return [each for origin in origins for each in training_chain(origin.identity)]


def training_chain(identity: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The identities of all trainings that made a run's model, the first first, its own last.

    The stages before it in a sequence; the one that left its frozen adapter, and those before that.
    """
    before = [identity[key] for key in ("previous_stage", "frozen_adapter") if key in identity]
    return [*(each for origin in before for each in training_chain(origin)), dict(identity)]


def backbone_identity(backbone: BackboneConfig, data: DataConfig) -> dict[str, Any]:
    """Which language model it is, and how it is asked."""
    decides = {"name_or_path", "revision", "dtype", "attn_implementation", "local_resolver"}
    values = backbone.model_dump(mode="json", include=decides)
    # with a chat template the original is another one to compare with
    return values | ({"chat_template": True} if data.chat_template else {})


def peft_identity(peft: PeftConfig, *, backbone: BackboneConfig, data: DataConfig) -> dict[str, Any]:
    """The PEFT method, on which modules; what it replays, and which of its keys go with the arm."""
    values = {"_target_": peft.target, "target_modules": peft.target_modules(backbone), **peft.arguments()}
    values |= {"method_specific_keys": list(peft.method_specific_keys)} if peft.method_specific_keys else {}
    if peft.replay is not None:
        source = asdict(data.forgetting_source(backbone))
        values["replay"] = peft.replay.model_dump(mode="json") | {"source": source}
    return values


def run_name(config: RunConfig) -> str:
    """The name of a run's folder: its choices, and eight digits of its identity's hash.

    For example ``mini-lora-gsm8k-imsm-query-r8-s0-1a2b3c4d``, ``mini-original-5e6f7a8b``; a later
    stage of a sequence carries the tasks before it: ``mini-lora-gsm8k_mrpc-peft-s0-9a0b1c2d``; on
    a frozen adapter it is ``mini-lora-gsm8k-imsm-frozen-query-r8-s0-3e4f5a6b``.
    """
    parts = [config.backbone.name]
    if config.method.trainable:
        learned = [*(config.previous_stage.tasks if config.previous_stage else []), config.data.name]
        parts += [config.peft.name, "_".join(learned), config.method.name]
        parts += ["frozen"] if config.frozen_run is not None else []
        if config.method.stream == "interwoven":
            parts.append(config.gate.name)
            parts += [f"r{config.gate.rank}"] if config.gate.rank else []
        parts.append(f"s{config.seed}")
    else:
        parts.append(config.method.name)
    text = json.dumps(run_identity(config), sort_keys=True, ensure_ascii=False)
    parts.append(hash_text(text)[:8])
    return "-".join(re.sub(r"[^\w.]+", "_", part) for part in parts)


def baseline_config(config: RunConfig) -> RunConfig:
    """The same run with nothing trained."""
    method = MethodConfig(name="original", stream="original", trainable=False)
    return config.model_copy(update={"method": method, "run_dir": None})


def original_run(saved: Mapping[str, Any]) -> tuple[str, dict[str, Any], dict[str, Any]]:
    """Return the name, identity and saved configuration of a run's original.

    Args:
        saved: `RunConfig.to_dict()` of the run.

    Raises:
        pydantic.ValidationError: The configuration is of another version.
    """
    config = baseline_config(RunConfig.from_dict(saved))
    return run_name(config), run_identity(config), config.to_dict()


def comparable_up_to_method(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two runs may stand side by side: all else that decides their training is equal.

    A recipe may set some keys per method (`trainer.method_specific_keys`, the released code's), and so may a
    PEFT method (`peft.method_specific_keys`); they count as part of the method. The original stands beside
    every run on the same backbone. A gate on a frozen adapter stands beside the PEFT run that the
    adapter came from, whatever the gate itself was fitted on, and beside IMSM trained jointly if
    that has both the adapter's choices and the gate's.

    Args:
        one: a run's identity, as `run_identity` gives it and `result.json` keeps it.
        other: another's.
    """
    if is_original(one) or is_original(other):
        return bool(one["backbone"] == other["backbone"])
    frozen, joint = (one, other) if "frozen_adapter" in one else (other, one)
    if "frozen_adapter" in frozen and "frozen_adapter" not in joint:
        beside = _without_method(joint)
        same = _without_method(frozen["frozen_adapter"]) == beside
        own = {key: value for key, value in frozen.items() if key != "frozen_adapter"}
        tuned = joint["method"]["stream"] == "tuned"
        return same and (tuned or _without_method(own) == beside)
    return _without_method(one) == _without_method(other)


def is_original(identity: Mapping[str, Any]) -> bool:
    """Whether nothing is trained in the run of an identity."""
    return bool(identity["method"]["stream"] == "original")


def identity_without_seed(identity: Mapping[str, Any]) -> dict[str, Any]:
    """An identity without its seed, nor that of what it goes on from: a stage, a frozen adapter.

    Only where that had the same seed: seeds go together from the first training on.
    """
    rest = {key: value for key, value in identity.items() if key != "seed"}
    for key in ("previous_stage", "frozen_adapter"):
        before = rest.get(key)
        if before is not None and before.get("seed") == identity.get("seed"):
            rest[key] = identity_without_seed(before)
    return rest


def _without_method(identity: Mapping[str, Any]) -> dict[str, Any]:
    recipe = identity["trainer"]
    dropped = {"gate_learning_rate", *recipe.get("method_specific_keys", [])}
    kept = {key: value for key, value in recipe.items() if key not in dropped}
    rest = {key: value for key, value in identity.items() if key not in ("method", "gate")}
    peft = rest["peft"]
    peft = {key: peft[key] for key in peft if key not in peft.get("method_specific_keys", [])}
    before = {"previous_stage": _without_method(rest["previous_stage"])} if "previous_stage" in rest else {}
    return rest | {"trainer": kept, "peft": peft} | before


def _trainer(config: RunConfig) -> dict[str, Any]:
    """The recipe; where it sets keys per method, also which one it is and which keys."""
    recipe = config.trainer.model_dump(mode="json", exclude=_NOT_DECIDING)
    for key in _NOT_THERE:
        if recipe[key] in (None, False):
            del recipe[key]
    if "metric_for_best_model" in recipe:  # what was measured where decides which checkpoint is the model
        recipe["save_steps"] = config.trainer.save_steps
    if config.trainer.method_specific_keys:
        recipe |= {"name": config.trainer.name, "method_specific_keys": list(config.trainer.method_specific_keys)}
    return recipe | _dropout_cut(config.peft.arguments(), config)


def _dropout_cut(arguments: Mapping[str, Any], config: RunConfig) -> dict[str, Any]:
    """How a batch is cut up, where the arguments of an adapter or a gate make it matter.

    A dropout draws masks per micro-batch; LoRAMoE's constraint is no sum over examples.
    """
    dropout = any(rate and not isinstance(rate, bool) for key, rate in arguments.items() if key.endswith("dropout"))
    if not (dropout or arguments.get("blc_weight")):
        return {}
    return {"micro_batch_size": config.trainer.micro_batch_size or config.trainer.global_batch_size}


def _data(config: RunConfig) -> dict[str, Any]:
    """What is trained on: not how answers are judged, nor where other tasks come from."""
    chosen = {"name", "module", "hub", "prompt_style", "max_train_examples"}
    chosen |= {"max_prompt_tokens", "max_new_tokens"}
    values = config.data.model_dump(mode="json", include=chosen)
    source = config.data.target_source()
    if source.kind == "local":
        del values["hub"]
    if config.data.task_type:
        values["task_type"] = config.data.task_type
    return values | {"splits": config.data.splits.get("train", []), "source": asdict(source)}
