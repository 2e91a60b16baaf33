"""From Hydra's composition to plain values, gathering every interpolation that leads nowhere."""

from __future__ import annotations

from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import InterpolationResolutionError, MissingMandatoryValue, OmegaConfBaseException

from imsm.utils.messages import format_value


def resolve(cfg: DictConfig) -> tuple[dict[str, Any], dict[str, str]]:
    """Plain dictionaries, lists and values, and a line per key that cannot be resolved."""
    errors: dict[str, str] = {}
    values = _plain(cfg, "", errors)
    return (values if isinstance(values, dict) else {}), errors


def _plain(node: Any, path: str, errors: dict[str, str]) -> Any:
    if isinstance(node, DictConfig):
        taken = ((key, _get(node, key, path + str(key), errors)) for key in node)
        return {str(key): value for key, (value, found) in taken if found}
    if isinstance(node, ListConfig):
        taken = ((i, _get(node, i, path + str(i), errors)) for i in range(len(node)))
        return [value for _, (value, found) in taken if found]
    return node


def _get(parent: Any, key: Any, path: str, errors: dict[str, str]) -> tuple[Any, bool]:
    try:
        return _plain(parent[key], f"{path}.", errors), True
    except MissingMandatoryValue:
        errors[path] = f"{path}: is missing; give {path}=..."
    except InterpolationResolutionError as error:
        written: Any = OmegaConf.to_container(parent, resolve=False)
        errors[path] = f"{path}={format_value(written[key])}: {_reason(path, error)}"
    return None, False


def _reason(path: str, error: OmegaConfBaseException) -> str:
    first = str(error).strip().splitlines()[0]
    return f"cannot be resolved ({first}); give {path}=... or choose another option"
