"""Each token from the stream that is surer of it: the one whose likeliest token is likelier."""

from __future__ import annotations

from typing import TYPE_CHECKING

from imsm.controls import BaselineInfo
from imsm.controls.mixed import mixed
from imsm.controls.mixes import mix_by_confidence

if TYPE_CHECKING:
    from imsm.controls.finished import FinishedRun
    from imsm.siamese.model import SiameseForCausalLM

INFO = BaselineInfo(
    name="confidence_maximum",
    meaning="each token from the stream whose likeliest token is likelier",
)


def build_model(run: FinishedRun, value: None) -> SiameseForCausalLM:
    """The model."""
    return mixed(run.model(), mix_by_confidence)
