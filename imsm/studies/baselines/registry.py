"""The shipped baselines by name, and custom ones by dotted name."""

import pkgutil
from typing import cast

from imsm.studies.baselines import methods
from imsm.studies.baselines.base import Baseline
from imsm.utils.errors import UserError
from imsm.utils.options import closest_match
from imsm.utils.trust import BASELINES, import_trusted_module


def list_baselines() -> list[str]:
    """Return the names of the shipped baselines."""
    # Lists the files without importing them: `imsm baselines --help` must not import torch.
    return sorted(module.name for module in pkgutil.iter_modules(methods.__path__))


def load_baseline(name: str) -> Baseline:
    """Import a baseline, given its name or the dotted name of a module.

    Raises:
        UserError: Unknown baseline, or the module does not define one.
    """
    names = list_baselines()
    path = f"{methods.__name__}.{name}" if name in names else name
    try:
        module = import_trusted_module(path, within=BASELINES, key="--baselines")
    except UserError as error:
        match = closest_match(name, names)
        hint = f"; did you mean {match}?" if match else ""
        raise UserError(
            f"--baselines {name}: no such baseline; choose from {', '.join(names)}, or give the dotted name of a "
            f"module in the folder given by --config-dir{hint}"
        ) from error
    if not hasattr(module, "INFO") or not any(hasattr(module, part) for part in ("build_model", "route_to_original")):
        raise UserError(
            f"--baselines {name}: the module {path} is not a baseline; define INFO = BaselineInfo(...) and "
            "build_model(run, value) or route_to_original(run, value, task)"
        )
    return cast(Baseline, module)
