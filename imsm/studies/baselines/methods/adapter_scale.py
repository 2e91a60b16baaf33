"""Scale the adapter of a single stream (WiSE-FT); costs as much as one model."""

from imsm.models.siamese.model import SiameseForCausalLM
from imsm.studies.baselines.adapter_scaling import build_scaled_model
from imsm.studies.baselines.base import BaselineInfo
from imsm.studies.baselines.finished_run import FinishedRun

INFO = BaselineInfo(
    name="adapter_scale",
    meaning="W = W0 + alpha dW; above 1: beyond the tuned model",
    stream="tuned",
    symbol="alpha",
    grid=(0.25, 0.5, 0.75),
    high=2.0,
    ends={0.0: "original", 1.0: "tuned"},
)


def build_model(run: FinishedRun, value: float) -> SiameseForCausalLM:
    """Return the model for one alpha.

    Raises:
        UserError: The PEFT method cannot be scaled.
    """
    return build_scaled_model(run.model(), value)
