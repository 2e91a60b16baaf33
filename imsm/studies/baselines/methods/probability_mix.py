"""The probabilities of both streams mixed by one weight: their arithmetic mean."""

from __future__ import annotations

from typing import TYPE_CHECKING

from imsm.studies.baselines.base import BaselineInfo
from imsm.studies.baselines.logit_mixing import build_mixing_model, mix_probabilities

if TYPE_CHECKING:
    from imsm.models.siamese.model import SiameseForCausalLM
    from imsm.studies.baselines.finished_run import FinishedRun

INFO = BaselineInfo(
    name="probability_mix",
    meaning="p = lambda p_original + (1 - lambda) p_tuned",
    symbol="lambda",
    grid=(0.25, 0.5, 0.75),
    ends={0.0: "tuned", 1.0: "original"},
)


def build_model(run: FinishedRun, value: float) -> SiameseForCausalLM:
    """The model at one lambda."""
    return build_mixing_model(run.model(), mix_probabilities(value))
