"""Each token from the stream that is surer of it: the one with the lower entropy."""

from __future__ import annotations

from typing import TYPE_CHECKING

from imsm.controls import BaselineInfo
from imsm.controls.mixed import mixed
from imsm.controls.mixes import mix_by_entropy

if TYPE_CHECKING:
    from imsm.controls.finished import FinishedRun
    from imsm.siamese.model import SiameseForCausalLM

INFO = BaselineInfo(name="confidence", meaning="each token from the stream whose entropy is lower")


def build_model(run: FinishedRun, value: None) -> SiameseForCausalLM:
    """The model."""
    return mixed(run.model(), mix_by_entropy)
