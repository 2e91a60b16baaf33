"""The gate alone: `frozen_adapter=FOLDER` takes the adapter of a finished run as it is.

The folder is that of a PEFT run or of an IMSM run, of which the gate is left behind. What its
adapter is made of and stands on must be what this run would have made. Only small files are read
here; no library is loaded.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from imsm.config.identity import backbone_identity, is_original, peft_identity
from imsm.config.schema import BackboneConfig, DataConfig, FrozenAdapterConfig, GateConfig, MethodConfig, PeftConfig
from imsm.utils.dicts import diff_dicts
from imsm.utils.messages import format_value
from imsm.utils.run_dir import RunDir

_ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")
_GIVE = "give the folder of a finished run of method=peft or method=imsm"


def resolve_frozen_adapter(
    folder: str, *, backbone: BackboneConfig, peft: PeftConfig, data: DataConfig
) -> tuple[FrozenAdapterConfig | None, list[str]]:
    """The run that `frozen_adapter` names.

    Args:
        folder: of the run.
        backbone: of the run that takes its adapter.
        peft: likewise.
        data: likewise.

    Returns:
        The run, None if it cannot be had, and a line per problem.
    """
    given, run = f"frozen_adapter={folder}", RunDir(Path(folder))
    if not run.path.is_dir():
        return None, [f"{given}: there is no such folder; {_GIVE}"]
    try:
        identity = json.loads(run.identity.read_text(encoding="utf-8"))
        nothing = is_original(identity)
    except FileNotFoundError:
        return None, [f"{given}: holds no run ({run.identity.name} is missing); {_GIVE}"]
    except (OSError, ValueError, LookupError, TypeError) as error:
        return None, [f"{given}: its {run.identity.name} is damaged ({error}); {_GIVE}"]
    if nothing:
        return None, [f"{given}: has no adapter, nothing was trained there; {_GIVE}"]
    if not run.trained.is_file():
        return None, [
            f"{given}: its training is not finished ({run.trained.name} is missing); give that "
            "run's command again first"
        ]
    missing = [name for name in _ADAPTER_FILES if not (run.adapter / name).is_file()]
    if missing:
        lacking = f"{missing[0]} is not in {run.adapter.relative_to(run.path)}"
        return None, [f"{given}: its adapter is missing ({lacking}); {_GIVE}"]
    identity = identity.get("frozen_adapter", identity)  # a frozen adapter has learned there
    errors = _differences(
        given,
        {"backbone": identity["backbone"], "peft": identity["peft"]},
        {"backbone": backbone_identity(backbone, data), "peft": peft_identity(peft, backbone=backbone, data=data)},
    )
    return FrozenAdapterConfig(tasks=_learned(identity), identity=identity), errors


def check_method(frozen_adapter: str | None, method: MethodConfig) -> list[str]:
    """Somebody must learn."""
    if frozen_adapter is None or method.stream == "interwoven":
        return []
    return [
        f"frozen_adapter={frozen_adapter}: a gate learns beside it, and method={method.name} has "
        "none; choose method=imsm, or leave it out"
    ]


def check_gate(frozen_adapter: str | None, gate: GateConfig) -> list[str]:
    """Nothing but the gate learns."""
    if frozen_adapter is None or gate.trainable:
        return []
    return [
        f"frozen_adapter={frozen_adapter}: nothing would be learned, since gate={gate.name} is not "
        "trained; choose a gate that is (gate=query, token, scalar, ...)"
    ]


def check_sequence(frozen_adapter: str | None, sequence: list[str] | None) -> list[str]:
    """The stages of a sequence train an adapter."""
    if frozen_adapter is None or sequence is None:
        return []
    return [
        f"frozen_adapter={frozen_adapter}: stays as it is, and the stages of "
        f"task_sequence={format_value(sequence)} train an adapter; leave one of the two out"
    ]


def _differences(given: str, there: Mapping[str, Any], asked: Mapping[str, Any]) -> list[str]:
    """A line per key; of another PEFT method all keys differ, so that one is enough."""
    of_arm = {f"peft.{key}" for key in there["peft"].get("method_specific_keys", [])}
    found = {key: pair for key, pair in diff_dicts(there, asked).items() if key not in of_arm}
    if "peft._target_" in found:
        found = {k: v for k, v in found.items() if k == "peft._target_" or not k.startswith("peft.")}
    lines = []
    for key, (has, wanted) in found.items():
        name, fix = key, f"choose {key}={format_value(has)}"
        if key == "backbone.chat_template":
            name = "data.chat_template"
            has, wanted = bool(has), bool(wanted)
            fix = f"choose {name}={format_value(has)}"
        elif key == "peft._target_":
            fix = "choose that method by peft="
        elif key == "peft.target_modules":
            fix = "choose these by peft.target_roles"
        lines.append(
            f"{given}: was trained with {name}={format_value(has)}, and this run has {format_value(wanted)}; "
            f"{fix}, or give another run"
        )
    return lines


def _learned(identity: Mapping[str, Any]) -> list[str]:
    """The tasks that a training learned, those of the stages before it first."""
    before = _learned(identity["previous_stage"]) if "previous_stage" in identity else []
    replay = identity["peft"].get("replay")
    return [*before, identity["data"]["name"], *([replay["task"]] if replay else [])]
