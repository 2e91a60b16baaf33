"""Gate-only training: `frozen_adapter=RUN_DIR` uses the adapter of a finished run frozen.

The run is of method=peft, or of method=imsm without its gate. Its backbone and PEFT settings must
equal those of the new run. For an imported adapter (`imsm evaluate`) the PEFT settings are taken from its run.
"""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from imsm.config.identity import backbone_identity, is_imported, is_original, peft_identity, replay_identity
from imsm.config.schema import (
    IMPORTED_ADAPTER,
    BackboneConfig,
    DataConfig,
    FrozenAdapterConfig,
    GateConfig,
    MethodConfig,
    PeftConfig,
)
from imsm.utils.dicts import diff_dicts
from imsm.utils.errors import UserError
from imsm.utils.json_files import shape_problem
from imsm.utils.messages import format_value
from imsm.utils.paths import is_path_name
from imsm.utils.run_dir import RunDir, read_identity

_ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")
_SHAPE = {"backbone": dict, "method": dict, "method.stream": str}
_IMPORTED_SHAPE = {"adapter": dict, "adapter.peft_type": str, "adapter.kwargs": dict, "adapter.sha256": str}
_TRAINED_SHAPE = _SHAPE | {"peft": dict, "data": dict, "data.name": str}
_FIX = "give the folder of a finished run of method=peft or method=imsm"


def resolve_frozen_adapter(
    folder: str, *, backbone: BackboneConfig, peft: PeftConfig, data: DataConfig
) -> tuple[FrozenAdapterConfig | None, list[str]]:
    """Compare the run in ``folder`` with the sections of the new run.

    Return the run (None if its adapter cannot be used), and one line per error.
    """
    given, run = f"frozen_adapter={folder}", RunDir(Path(folder))
    if not run.path.is_dir():
        return None, [f"{given}: no such folder; {_FIX}"]
    if not os.path.lexists(run.identity):
        return None, [f"{given}: contains no run ({run.identity.name} is missing); {_FIX}"]
    try:
        identity = read_identity(run, _SHAPE)
        original, imported = is_original(identity), is_imported(identity)
        more = _IMPORTED_SHAPE if imported else {} if original else _TRAINED_SHAPE
        identity = read_identity(run, _SHAPE | more)
    except UserError as error:
        return None, [f"{given}: {error}"]
    if original:
        return None, [f"{given}: has no adapter, because nothing was trained; {_FIX}"]
    if not run.is_trained:
        unfinished = f"its training is not finished ({run.trained.name} is missing)"
        return None, [f"{given}: {unfinished}; run its command again first"]
    missing = [name for name in _ADAPTER_FILES if not (run.adapter / name).is_file()]
    if missing:
        problem = f"its adapter is missing ({missing[0]} is not in {run.adapter.relative_to(run.path)})"
        return None, [f"{given}: {problem}; {_FIX}"]
    # A run with a frozen adapter did not train it; what counts is the training that the adapter is from.
    identity = identity.get("frozen_adapter", identity)
    wanted = {"backbone": backbone_identity(backbone, data)}
    if not is_imported(identity):
        wanted["peft"] = peft_identity(peft, backbone=backbone, data=data)
    return FrozenAdapterConfig(tasks=_trained_tasks(identity), identity=identity), [
        f"{given}: {line}, or give another run" for line in _differences(identity, wanted)
    ]


def imported_peft(folder: str, peft: PeftConfig) -> PeftConfig:
    """Return the section of the imported adapter of the run in ``folder``; ``peft`` for any other run."""
    try:
        identity = read_identity(RunDir(Path(folder)))
        # of a gate on an imported adapter, too
        identity = identity.get("frozen_adapter", identity)
        if not isinstance(identity, dict) or not is_imported(identity) or shape_problem(identity, _IMPORTED_SHAPE):
            return peft
    except UserError:
        return peft  # reported by `resolve_frozen_adapter`
    arguments = {key: identity["adapter"][key] for key in ("peft_type", "kwargs", "sha256")}
    name = arguments["peft_type"].lower()
    section: dict[str, Any] = {
        "name": name if is_path_name(name) else "imported",
        "_target_": IMPORTED_ADAPTER,
        "target_roles": [],
    }
    return PeftConfig(**section, **arguments, recipes=peft.recipes)


def _differences(saved: Mapping[str, Any], wanted: Mapping[str, Any]) -> Iterator[str]:
    """Yield one line per differing key of backbone and peft; one is enough for another PEFT method."""
    # Recipes set these per method, and the adapter keeps the values that it was trained with.
    ignored = {f"peft.{key}" for key in saved.get("peft", {}).get("method_specific_keys", [])}
    pairs = diff_dicts({key: saved[key] for key in wanted}, wanted)
    other_method = "peft._target_" in pairs
    for key, (old, new) in pairs.items():
        if key in ignored or (other_method and key.startswith("peft.") and key != "peft._target_"):
            continue
        # The identity has the template under the backbone, because it changes the original's responses.
        if key == "backbone.chat_template":
            key, old, new = "data.chat_template", bool(old), bool(new)
        # These two keys are the result of an option and of roles; no single override restores them.
        fixes = {
            "peft._target_": "choose that method by peft=",
            "peft.target_modules": "choose them by peft.target_roles",
        }
        fix = fixes.get(key, f"set {key}={format_value(old)}")
        yield f"was trained with {key}={format_value(old)}, and this run has {format_value(new)}; {fix}"


def _trained_tasks(identity: Mapping[str, Any]) -> list[str]:
    """Return the tasks of a training and of the stages before it, in order; none, if an imported adapter's."""
    if is_imported(identity):
        return []
    previous = _trained_tasks(identity["previous_stage"]) if "previous_stage" in identity else []
    replay = replay_identity(identity)
    return [*previous, identity["data"]["name"], *([replay["task"]] if replay else [])]


def frozen_adapter_conflicts(
    frozen_adapter: str | None, method: MethodConfig, gate: GateConfig, task_sequence: list[str] | None
) -> Iterator[str]:
    """Yield one line per section that a frozen adapter contradicts."""
    if frozen_adapter is None:
        return
    prefix = f"frozen_adapter={frozen_adapter}"
    if method.stream != "interwoven":
        yield f"{prefix}: only a gate is trained, and method={method.name} has none; choose method=imsm, or omit it"
    if not gate.trainable:
        problem = f"nothing would be trained, because gate={gate.name} is not trainable"
        yield f"{prefix}: {problem}; choose another gate (gate=query, no_query, learned_scalar, ...)"
    if task_sequence is not None:
        problem = f"the stages of task_sequence={format_value(task_sequence)} train an adapter"
        yield f"{prefix}: {problem}; omit one of the two"
