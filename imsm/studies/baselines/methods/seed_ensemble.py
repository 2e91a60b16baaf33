"""Average the logits of two adapters that differ in their seed (--other), without the original.

It costs as much as two streams, so it shows whether any two streams suffice.
"""

from imsm.models.siamese.model import SiameseForCausalLM
from imsm.studies.baselines.adapter_ensemble import build_ensemble, share_backbone
from imsm.studies.baselines.base import BaselineInfo
from imsm.studies.baselines.finished_run import FinishedRun
from imsm.studies.baselines.logit_mixing import mix_logits
from imsm.utils.errors import UserError

INFO = BaselineInfo(name="seed_ensemble", meaning="the mean logits of this adapter and that of --other")


def check(run: FinishedRun) -> None:
    """Require a second run.

    Raises:
        UserError: None was given.
    """
    if run.other is None:
        raise UserError("seed_ensemble: needs a second run that differs in its seed only; give it by --other")


def cache_key(run: FinishedRun) -> dict[str, str]:
    """Return the identity of the second adapter."""
    assert run.other is not None
    return {"other": run.other.folder.name, "adapter": run.other.fingerprint("tuned")}


def build_model(run: FinishedRun, value: None) -> SiameseForCausalLM:
    """Return the ensemble; both adapters share the backbone."""
    assert run.other is not None
    # Each run loads its own backbone; sharing frees the second one's weights.
    model, other = run.model(), run.other.model()
    share_backbone(model, other)
    return build_ensemble(model, other, mix_logits(0.5))
