"""Each token from the stream that is surer of it: the one whose likeliest token is likelier."""

from __future__ import annotations

from typing import TYPE_CHECKING

from imsm.controls import Info
from imsm.controls.mixed import mixed
from imsm.controls.mixes import by_maximum

if TYPE_CHECKING:
    from imsm.controls.finished import FinishedRun
    from imsm.siamese.model import SiameseForCausalLM

INFO = Info(
    name="confidence_maximum",
    meaning="each token from the stream whose likeliest token is likelier",
)


def answering(run: FinishedRun, value: None) -> SiameseForCausalLM:
    """The model."""
    return mixed(run.model(), by_maximum)
