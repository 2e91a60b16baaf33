"""The interface of a training-free baseline, and its registry.

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

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, cast

from imsm.studies.baselines import methods
from imsm.utils.errors import UserError
from imsm.utils.options import closest_match

if TYPE_CHECKING:
    from imsm.studies.baselines.finished_run import FinishedRun


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
    version: int = 1


class Baseline(Protocol):
    """The part that every baseline module defines."""

    INFO: BaselineInfo


def list_baselines() -> list[str]:
    """Return the names of the shipped baselines."""
    return sorted(module.name for module in pkgutil.iter_modules(methods.__path__))


def load_baseline(name: str) -> Baseline:
    """Import a baseline.

    Args:
        name: Name of a shipped baseline, or the dotted name of a module.

    Raises:
        UserError: Unknown baseline, or the module does not define one.
    """
    names = list_baselines()
    path = f"{methods.__name__}.{name}" if name in names else name
    try:
        module = importlib.import_module(path)
    except (ModuleNotFoundError, TypeError, ValueError) as error:  # TypeError and ValueError: ".x" and ""
        match = closest_match(name, names)
        hint = f"; did you mean {match}?" if match else ""
        raise UserError(
            f"--baselines {name}: no such baseline; choose from {', '.join(names)}, or give the dotted name of a "
            f"module{hint}"
        ) from error
    if not hasattr(module, "INFO") or not any(hasattr(module, part) for part in ("build_model", "route_to_original")):
        raise UserError(
            f"--baselines {name}: the module {path} is not a baseline; define INFO = BaselineInfo(...) and "
            "build_model(run, value) or route_to_original(run, value, task)"
        )
    return cast(Baseline, module)


def call_hook(baseline: Baseline, name: str, run: FinishedRun, default: Any) -> Any:
    """Call an optional function of a baseline, or return the default."""
    function = getattr(baseline, name, None)
    return default if function is None else function(run)
