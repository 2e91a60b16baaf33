"""One stream whose adapter is on at another strength (WiSE-FT): it costs what one model costs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from imsm.studies.baselines.adapter_scaling import build_scaled_model
from imsm.studies.baselines.base import BaselineInfo

if TYPE_CHECKING:
    from imsm.models.siamese.model import SiameseForCausalLM
    from imsm.studies.baselines.finished_run import FinishedRun

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
    return build_scaled_model(run.model(), value)
