"""Take each token from the stream whose most likely token is more likely."""

from imsm.models.siamese.model import SiameseForCausalLM
from imsm.studies.baselines.base import BaselineInfo
from imsm.studies.baselines.finished_run import FinishedRun
from imsm.studies.baselines.logit_mixing import build_mixing_model, mix_by_confidence

INFO = BaselineInfo(name="max_confidence", meaning="each token from the stream with the higher maximum probability")


def build_model(run: FinishedRun, value: None) -> SiameseForCausalLM:
    """Return the mixing model."""
    return build_mixing_model(run.model(), mix_by_confidence)
