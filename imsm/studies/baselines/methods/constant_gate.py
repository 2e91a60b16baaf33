"""Replace a learned gate by its mean: does its dependence on the input matter?

The constant is the mean weight of the original stream over all tokens that the interwoven run generated.
"""

from imsm.models.siamese.gate import Gate
from imsm.models.siamese.model import SiameseForCausalLM
from imsm.studies.baselines.base import BaselineInfo
from imsm.studies.baselines.finished_run import FinishedRun
from imsm.studies.baselines.logit_mixing import derive_model
from imsm.utils.errors import UserError

INFO = BaselineInfo(
    name="constant_gate", meaning="the gate's mean over the run's responses, instead of the gate", symbol="g"
)


def check(run: FinishedRun) -> None:
    """Require an interwoven run.

    Raises:
        UserError: The run has no gate.
    """
    if run.config.method.stream != "interwoven":
        raise UserError(f"constant_gate: {run.folder.name} has no gate; give a run of method=imsm")


def values(run: FinishedRun) -> tuple[float]:
    """Return the gate's mean over generated tokens, with two decimals.

    Raises:
        UserError: The run's predictions contain no gate values.
    """
    # A prediction has its mean over the response, which is weighted by the response's length.
    total = tokens = 0.0
    for predictions in run.predictions().values():
        known = predictions[predictions["gate_mean"].notna()]
        weights = known["tokens"].clip(lower=1)
        total += float((known["gate_mean"] * weights).sum())
        tokens += float(weights.sum())
    if not tokens:
        raise UserError(
            f"constant_gate: the predictions of {run.folder.name} contain no gate values; run its command with "
            "mode=evaluate"
        )
    return (round(total / tokens, 2),)


def build_model(run: FinishedRun, value: float) -> SiameseForCausalLM:
    """Return the model with a constant gate."""
    model = run.model()
    gate = Gate(
        hidden_size=model.config.hidden_size,
        inputs=[],
        rank=None,
        granularity="scalar",
        init_value=value,
        trainable=False,
    )
    constant = derive_model(model, SiameseForCausalLM, stream="interwoven", gate=gate.to(model.device))
    constant.streams.copy_capabilities(model.streams)
    return constant
