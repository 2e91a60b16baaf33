"""Each token from the stream that is surer of it: the one with the lower entropy."""

from __future__ import annotations

from typing import TYPE_CHECKING

from imsm.controls import Info
from imsm.controls.mixed import mixed
from imsm.controls.mixes import by_entropy

if TYPE_CHECKING:
    from imsm.controls.finished import FinishedRun
    from imsm.siamese.model import SiameseForCausalLM

INFO = Info(name="confidence", meaning="each token from the stream whose entropy is lower")


def answering(run: FinishedRun, value: None) -> SiameseForCausalLM:
    """The model."""
    return mixed(run.model(), by_entropy)
