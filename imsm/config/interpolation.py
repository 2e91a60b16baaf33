"""Resolve the interpolations of a composed configuration, collecting every failure."""

from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import InterpolationResolutionError, MissingMandatoryValue

from imsm.utils.messages import format_value


def resolve(cfg: DictConfig) -> tuple[dict[str, Any], dict[str, str]]:
    """Return the configuration as plain values, and an error message for each key that cannot be resolved."""
    errors: dict[str, str] = {}
    values = _plain(cfg, "", errors)
    return (values if isinstance(values, dict) else {}), errors


def _plain(node: Any, path: str, errors: dict[str, str]) -> Any:
    if isinstance(node, DictConfig):
        items = ((key, _get(node, key, path + str(key), errors)) for key in node)
        return {str(key): value for key, (value, resolved) in items if resolved}
    if isinstance(node, ListConfig):
        values = (_get(node, index, path + str(index), errors) for index in range(len(node)))
        return [value for value, resolved in values if resolved]
    return node


def _get(parent: Any, key: Any, path: str, errors: dict[str, str]) -> tuple[Any, bool]:
    """Return a value and whether it could be resolved."""
    try:
        return _plain(parent[key], f"{path}.", errors), True
    # OmegaConf raises this for the key itself; for an interpolation that points to it, the other error.
    except MissingMandatoryValue:
        errors[path] = f"{path}: is missing; give {path}=..."
    except InterpolationResolutionError as error:
        written: Any = OmegaConf.to_container(parent, resolve=False)
        reason = str(error).strip().splitlines()[0]
        errors[path] = (
            f"{path}={format_value(written[key])}: cannot be resolved ({reason}); "
            f"give {path}=... or choose another option"
        )
    return None, False
