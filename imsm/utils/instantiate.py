"""Check the arguments in a yaml against the signature of its `_target_`.

The signature is the schema, so custom classes need no registration. Ranges are part of the
annotations (`Count`, `Probability`, ...).
"""

import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Annotated, Any

from annotated_types import Ge, Gt, Interval, Le

from imsm.utils.messages import unknown_key_error, value_error

Count = Annotated[int, Ge(1), Le(2**31 - 1)]  # larger numbers overflow in torch
Positive = Annotated[float, Gt(0)]
NotNegative = Annotated[float, Ge(0)]
Probability = Annotated[float, Interval(ge=0, lt=1)]


def argument_errors(
    section: str,
    factory: Callable[..., Any],
    arguments: Mapping[str, Any],
    *,
    supplied: Iterable[str],
    annotations: Mapping[str, Any] | None = None,
) -> list[str]:
    """Check a yaml's arguments against a signature; return one line per error.

    ``section`` is the prefix of the keys in the messages. The run sets the arguments ``supplied`` itself
    (`target_modules`, `hidden_size`). ``annotations`` replace those of the signature.
    """
    excluded, annotations = set(supplied), annotations or {}
    parameters = {
        name: parameter
        for name, parameter in inspect.signature(factory).parameters.items()
        if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY) and name not in excluded
    }
    unknown = [name for name in arguments if name not in parameters]
    errors = [unknown_key_error(section, name, arguments[name], parameters) for name in unknown]
    for name, parameter in parameters.items():
        if name in arguments:
            annotation = annotations.get(name) or _evaluate(factory, parameter.annotation)
            errors += _type_errors(f"{section}.{name}", annotation, arguments[name])
        elif parameter.default is inspect.Parameter.empty:
            errors.append(f"{section}.{name}: is missing; {factory.__name__} requires it")
    return errors


def accepts_target_modules(factory: Callable[..., Any]) -> bool:
    """Return whether a PEFT method's factory has a parameter ``target_modules``."""
    return "target_modules" in inspect.signature(factory).parameters


def _evaluate(factory: Callable[..., Any], annotation: Any) -> Any:
    """Return a parameter's type; Any if it is missing or imported for type checkers only."""
    if annotation is inspect.Parameter.empty:
        return Any
    if not isinstance(annotation, str):
        return annotation
    # A string under `from __future__ import annotations`; get_type_hints would fail on any unresolvable one.
    function = factory.__init__ if inspect.isclass(factory) else factory
    try:
        return eval(annotation, getattr(function, "__globals__", {}))
    except (NameError, AttributeError, TypeError):
        return Any


def _type_errors(key: str, annotation: Any, value: Any) -> list[str]:
    # pydantic has no schema for arbitrary classes (a torch.dtype, a callback): such a value is not checked.
    # a bare GPU machine that only measures speed has no pydantic
    from pydantic import ConfigDict, PydanticSchemaGenerationError, TypeAdapter, ValidationError

    try:
        adapter = TypeAdapter(annotation, config=ConfigDict(strict=True, allow_inf_nan=False))
    except PydanticSchemaGenerationError:
        return []
    try:
        adapter.validate_python(value)
    except ValidationError as error:
        return [value_error(key, detail, annotation) for detail in error.errors()]
    return []
