"""LiNeS: scale the adapter more the deeper the layer (2410.17146); costs as much as one model.

    a_l = alpha + beta (l - 1) / (L - 1)    block l of L, beta = 1 - alpha

So the last block keeps the adapter as trained, and the first has it scaled by alpha.
"""

from imsm.models.siamese.model import SiameseForCausalLM
from imsm.studies.baselines.adapter_scaling import build_scaled_model
from imsm.studies.baselines.base import BaselineInfo
from imsm.studies.baselines.finished_run import FinishedRun

INFO = BaselineInfo(
    name="lines",
    meaning="W_l = W0 + alpha_l dW; alpha_l grows with depth from alpha in the first block to 1 in the last",
    stream="tuned",
    symbol="alpha",
    grid=(0.0, 0.25, 0.5),
    ends={1.0: "tuned"},
)


def build_model(run: FinishedRun, value: float) -> SiameseForCausalLM:
    """Return the model for one alpha.

    Raises:
        UserError: The PEFT method cannot be scaled.
    """
    return build_scaled_model(run.model(), value, 1.0, baseline=INFO.name)
