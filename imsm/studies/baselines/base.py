"""The interface of a training-free baseline.

A baseline is a module of `imsm.studies.baselines.methods`, or a custom module given by its dotted name. It
defines

    INFO = BaselineInfo(name=, meaning=, ...)

and one of

    build_model(run, value) -> SiameseForCausalLM     a model that generates new responses
    route_to_original(run, value, task) -> list[bool]     a router: the examples of a task that take the
                                                    original's response instead of the tuned model's

and may define

    check(run) -> None                raise UserError if the baseline does not apply to the run
    values(run) -> tuple[float, ...]  the values to evaluate, if they depend on the run
    cache_key(run) -> dict            further inputs of its responses besides the run and the value
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol


@dataclass(frozen=True, kw_only=True)
class BaselineInfo:
    """Description of a baseline.

    Attributes:
        name: Name on the command line and of its directory.
        meaning: One line.
        stream: The stream that the built model runs; unused by a router.
        symbol: Name of its value, such as "lambda"; "" if it has none.
        grid: Default values.
        low: Smallest valid value.
        high: Largest valid value.
        ends: Values at which it equals the "original" or the "tuned" model, whose responses are reused.
        by_default: Whether it is evaluated if no baselines are named.
        version: Version of its formula; part of the response cache's key.
    """

    name: str
    meaning: str
    stream: str = "interwoven"
    symbol: str = ""
    grid: tuple[float, ...] = ()
    low: float = 0.0
    high: float = 1.0
    ends: Mapping[float, str] = field(default_factory=dict)
    by_default: bool = True
    version: int = 1


class Baseline(Protocol):
    """The part that every baseline module defines."""

    INFO: BaselineInfo
