"""Continue a query with one stream where the run's gate is decided, at any threshold (`gate.skip`).

It shows which scores and how much decoding time a threshold gives, without training again.
"""

from imsm.models.siamese.model import SiameseForCausalLM
from imsm.studies.baselines.base import BaselineInfo
from imsm.studies.baselines.finished_run import FinishedRun
from imsm.studies.baselines.logit_mixing import derive_model
from imsm.utils.errors import UserError

INFO = BaselineInfo(
    name="gate_skip",
    meaning="one stream if the run's gate is below tau or above 1 - tau after the prompt, else both",
    symbol="tau",
    grid=(0.1, 0.25, 0.4),
    low=0.01,
    high=0.49,
    # a variant of the run's own model, and its values are not those of a mix
    by_default=False,
)


def check(run: FinishedRun) -> None:
    """Require an interwoven run.

    Raises:
        UserError: The run has no gate.
    """
    if run.config.method.stream != "interwoven":
        raise UserError(f"gate_skip: {run.folder.name} has no gate; give a run of method=imsm")


def cache_key(run: FinishedRun) -> dict[str, str]:
    """Return the hash of the model, which includes the gate."""
    return {"model": run.fingerprint("interwoven")}


def build_model(run: FinishedRun, value: float) -> SiameseForCausalLM:
    """Return the run's model with the threshold ``value``."""
    model = run.model()
    skipping = derive_model(model, SiameseForCausalLM, stream="interwoven", gate=model.gate)
    skipping.streams.copy_capabilities(model.streams)
    skipping.skip_threshold = value
    return skipping
