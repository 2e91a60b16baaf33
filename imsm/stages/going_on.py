"""Going on from a finished run: a stage of a sequence starts from what the one before it learned.

The values of adapter and gate are handed on, nothing else. Optimizer and schedule begin anew, and
so does a PEFT method's own bookkeeping: AdaLoRA has its whole budget of ranks again, where the
directions that were cut begin at zero.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

from imsm.backbones.fingerprint import file_digest
from imsm.config import RunConfig
from imsm.errors import UserError
from imsm.run_folder import RunDir
from imsm.siamese.storage import load_weights_into
from imsm.stages.parts import build_adapter

if TYPE_CHECKING:
    from imsm.siamese.model import SiameseForCausalLM


def check_resumable_method(config: RunConfig) -> None:
    """Refuse a method whose saved model cannot be trained further, before a first stage is trained.

    Raises:
        UserError: it is such a method.
    """
    method = build_adapter(config).config
    kind = getattr(getattr(method, "peft_type", None), "value", None)
    if kind == "P_TUNING" or getattr(method, "prefix_projection", False):
        raise UserError(
            f"peft={config.peft.name}: learns by an encoder that a finished model does not keep, "
            "so no stage can go on from it; choose peft=prompt_tuning, prefix_tuning without a "
            "projection, or lora"
        )


def parent_hash(before: Path) -> str:
    """Identifies the values of adapter and gate that a finished run left.

    Raises:
        UserError: the run is not finished.
    """
    run = RunDir(before)
    if not run.trained.is_file():
        raise UserError(
            f"{before}: is the stage before and holds no finished training; give the whole "
            "sequence, whose stages are trained in order"
        )
    return _values_fingerprint(run.model)


def frozen_fingerprint(config: RunConfig) -> dict[str, str]:
    """Identifies the values of the adapter that a run takes as it is; empty if it takes none."""
    if config.frozen_adapter is None:
        return {}
    return {"frozen adapter": _values_fingerprint(RunDir(Path(config.frozen_adapter)).adapter)}


def load_parent_weights(model: SiameseForCausalLM, before: Path) -> None:
    """Give ``model``'s adapter and gate the values that the run in ``before`` left."""
    load_weights_into(model, RunDir(before).model)


def _values_fingerprint(folder: Path) -> str:
    files = sorted(folder.rglob("*.safetensors"))
    digests = [f"{file.relative_to(folder)} {file_digest(file)}\n" for file in files]
    return hashlib.sha256("".join(digests).encode()).hexdigest()
