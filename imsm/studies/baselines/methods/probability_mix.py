"""Mix the probabilities of both streams with one constant weight."""

from imsm.models.siamese.model import SiameseForCausalLM
from imsm.studies.baselines.base import BaselineInfo
from imsm.studies.baselines.finished_run import FinishedRun
from imsm.studies.baselines.logit_mixing import build_mixing_model, mix_probabilities

INFO = BaselineInfo(
    name="probability_mix",
    meaning="p = lambda p_original + (1 - lambda) p_tuned",
    symbol="lambda",
    grid=(0.25, 0.5, 0.75),
    ends={0.0: "tuned", 1.0: "original"},
)


def build_model(run: FinishedRun, value: float) -> SiameseForCausalLM:
    """Return the mixing model for one lambda."""
    return build_mixing_model(run.model(), mix_probabilities(value))
