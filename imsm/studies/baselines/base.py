"""Controls: what a finished adapter gives without a gate and without any training.

A control is a module of `imsm.studies.baselines.methods`, or one of one's own by its dotted name. It offers

    INFO = BaselineInfo(name=, meaning=, ...)

and one of

    build_model(run, value) -> SiameseForCausalLM     a model that answers anew
    route_to_original(run, value, task) -> list[bool]     a router: which items of a task take the
                                                    original's answer, not the tuned model's

and may offer

    check(run) -> None                raises UserError where it does not fit the run
    values(run) -> tuple[float, ...]  the values to try, where they depend on the run
    made_of(run) -> dict              what else its answers depend on than run and value
"""

from __future__ import annotations

import importlib
import pkgutil
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, cast

from imsm.studies.baselines import methods as kinds
from imsm.utils.errors import UserError
from imsm.utils.options import closest_match

if TYPE_CHECKING:
    from types import ModuleType

    from imsm.studies.baselines.finished_run import FinishedRun


@dataclass(frozen=True, kw_only=True)
class BaselineInfo:
    """What the command needs to know of a control.

    Attributes:
        name: of its folder and on the command line.
        meaning: one line.
        stream: whose answers the model gives; of no use to a router.
        symbol: what its value is called; "" if it has none.
        grid: the values that are tried unless others are asked for.
        low: the least value that makes sense.
        high: the largest.
        ends: values at which it is the "original" or the "tuned" model, whose answers it then has.
        version: of its formula; another one asks anew.
    """

    name: str
    meaning: str
    stream: str = "interwoven"
    symbol: str = ""
    grid: tuple[float, ...] = ()
    low: float = 0.0
    high: float = 1.0
    ends: dict[float, str] = field(default_factory=dict)
    version: int = 1


class Baseline(Protocol):
    """The part of a control's module that every one has."""

    INFO: BaselineInfo


def list_baselines() -> list[str]:
    """The controls that imsm has."""
    return sorted(module.name for module in pkgutil.iter_modules(kinds.__path__))


def load_baseline(name: str) -> Baseline:
    """Imports a control's module.

    Args:
        name: a control of imsm, or the dotted name of a control's module.

    Raises:
        UserError: no such control, or a module that is none.
    """
    known = list_baselines()
    dotted = f"{kinds.__name__}.{name}" if name in known else name
    try:
        module = importlib.import_module(dotted)
    except (ModuleNotFoundError, TypeError, ValueError) as error:  # ".x" and "" are no names
        near = closest_match(name, known)
        hint = f"; did you mean {near}?" if near else ""
        raise UserError(
            f"--controls {name}: there is no such control ({', '.join(known)}; one of your own "
            f"goes by the dotted name of its module){hint}"
        ) from error
    if not hasattr(module, "INFO") or not (is_router(module) or hasattr(module, "build_model")):
        raise UserError(
            f"--controls {name}: the module {dotted} is no control; it needs INFO = BaselineInfo(...) and "
            "build_model(run, value) or route_to_original(run, value, task)"
        )
    return cast("Baseline", module)


def is_router(module: Baseline | ModuleType) -> bool:
    """Whether a control takes answers that are there already."""
    return hasattr(module, "route_to_original")


def call_hook(module: Baseline, name: str, run: FinishedRun, otherwise: Any) -> Any:
    """What an optional function of a control's module says of a run."""
    function = getattr(module, name, None)
    return otherwise if function is None else function(run)
