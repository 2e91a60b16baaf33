"""Each token from the stream that is surer of it: the one whose likeliest token is likelier."""

from __future__ import annotations

from typing import TYPE_CHECKING

from imsm.studies.baselines.base import BaselineInfo
from imsm.studies.baselines.logit_mixing import build_mixing_model, mix_by_confidence

if TYPE_CHECKING:
    from imsm.models.siamese.model import SiameseForCausalLM
    from imsm.studies.baselines.finished_run import FinishedRun

INFO = BaselineInfo(name="confidence_maximum", meaning="each token from the stream whose likeliest token is likelier")


def build_model(run: FinishedRun, value: None) -> SiameseForCausalLM:
    """The model."""
    return build_mixing_model(run.model(), mix_by_confidence)
