"""A learned gate frozen at its mean: does it matter that it looks at its input?

The mean weight of the original memory over all tokens that the interwoven run generated; memories
are mixed by it, as the gate mixed them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from imsm.models.siamese.gate import Gate
from imsm.models.siamese.model import SiameseForCausalLM
from imsm.studies.baselines.base import BaselineInfo
from imsm.studies.baselines.logit_mixing import derive_model
from imsm.utils.errors import UserError

if TYPE_CHECKING:
    from imsm.studies.baselines.finished_run import FinishedRun

INFO = BaselineInfo(
    name="constant_gate", meaning="the gate's mean over what the run generated, in place of the gate", symbol="g"
)


def check(run: FinishedRun) -> None:
    """Only an interwoven run has a gate.

    Raises:
        UserError: this one has none.
    """
    if run.config.method.stream != "interwoven":
        raise UserError(
            f"constant_gate: {run.folder.name} has no gate whose mean could be taken; give --run a run of method=imsm"
        )


def values(run: FinishedRun) -> tuple[float]:
    """The gate's mean, over tokens, to two places.

    Raises:
        UserError: the run's items do not say what its gate was.
    """
    total = tokens = 0.0
    for items in run.predictions().values():
        known = items[items["gate_mean"].notna()]
        weights = known["tokens"].clip(lower=1)
        total += float((known["gate_mean"] * weights).sum())
        tokens += float(weights.sum())
    if not tokens:
        raise UserError(
            f"constant_gate: the items of {run.folder.name} do not keep what the gate was; judge "
            "the run again (its command with mode=evaluate)"
        )
    return (round(total / tokens, 2),)


def build_model(run: FinishedRun, value: float) -> SiameseForCausalLM:
    """The model with a constant in the gate's place."""
    model = run.model()
    gate = Gate(
        hidden_size=model.config.hidden_size,
        inputs=[],
        rank=None,
        granularity="scalar",
        init_value=value,
        trainable=False,
    )
    made = derive_model(model, SiameseForCausalLM, stream="interwoven", gate=gate.to(model.device))
    made.streams.copy_capabilities(model.streams)
    return made
