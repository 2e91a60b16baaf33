"""The mean of the logits of two adapters that differ in their seed (--with): no original in it.

It costs what two streams cost, so it tells whether two streams are enough, whatever they are.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from imsm.studies.baselines.adapter_ensemble import build_ensemble, share_backbone
from imsm.studies.baselines.base import BaselineInfo
from imsm.studies.baselines.logit_mixing import mix_logits
from imsm.utils.errors import UserError

if TYPE_CHECKING:
    from imsm.models.siamese.model import SiameseForCausalLM
    from imsm.studies.baselines.finished_run import FinishedRun

INFO = BaselineInfo(name="seed_ensemble", meaning="the mean logits of this adapter and that of --with")


def check(run: FinishedRun) -> None:
    """There must be a second adapter.

    Raises:
        UserError: none was given.
    """
    if run.other is None:
        raise UserError(
            "seed_ensemble: needs a second run that differs in nothing but the seed; give its folder by --with"
        )


def cache_key(run: FinishedRun) -> dict[str, str]:
    """The other adapter."""
    assert run.other is not None
    return {"with": run.other.folder.name, "adapter": run.other.fingerprint("tuned")}


def build_model(run: FinishedRun, value: None) -> SiameseForCausalLM:
    """The model."""
    assert run.other is not None
    model, other = run.model(), run.other.model()
    share_backbone(model, other)
    return build_ensemble(model, other, mix_logits(0.5))
