"""One stream whose adapter is on at another strength (WiSE-FT): it costs what one model costs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from imsm.controls import BaselineInfo
from imsm.controls.scaled import scaled

if TYPE_CHECKING:
    from imsm.controls.finished import FinishedRun
    from imsm.siamese.model import SiameseForCausalLM

INFO = BaselineInfo(
    name="adapter_scale",
    meaning="W = W0 + alpha dW; above 1 the update is carried further",
    stream="tuned",
    symbol="alpha",
    grid=(0.25, 0.5, 0.75),
    high=2.0,
    ends={0.0: "original", 1.0: "tuned"},
)


def build_model(run: FinishedRun, value: float) -> SiameseForCausalLM:
    """The model at one alpha.

    Raises:
        UserError: the method's update cannot be scaled.
    """
    return scaled(run.model(), value)
