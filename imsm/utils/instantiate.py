"""Builders that a yaml names (`_target_`): find one, and check arguments against its signature.

The signature is the schema: a method of one's own needs no entry in a list of ours. A range is
part of an annotation (`Count`, `Probability`, ...), so it is checked before anything is loaded.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import Annotated, Any

from annotated_types import Ge, Gt, Interval

from imsm.utils.errors import UserError
from imsm.utils.messages import describe_value_error, unknown_key_error
from imsm.utils.options import closest_match

Count = Annotated[int, Ge(1)]
Positive = Annotated[float, Gt(0)]
NotNegative = Annotated[float, Ge(0)]
Probability = Annotated[float, Interval(ge=0, lt=1)]


def import_target(dotted: str) -> Callable[..., Any]:
    """The function or class behind a dotted name such as "imsm.models.adapters.lora.lora".

    Raises:
        UserError: the module cannot be imported, or has no such name.
    """
    module_name, _, name = dotted.rpartition(".")
    if not module_name:
        raise UserError(f"{dotted}: must be a dotted name, <module>.<function>")
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise UserError(
            f"{dotted}: {error}; a module of one's own lies in the folder given by --config-dir"
        ) from error
    found = getattr(module, name, None)
    if not callable(found):
        guess = closest_match(name, vars(module))
        hint = f"; did you mean {module_name}.{guess}?" if guess else ""
        raise UserError(f"{dotted}: {module_name} has no function or class {name}{hint}")
    return found


def argument_errors(
    section: str,
    builder: Callable[..., Any],
    arguments: Mapping[str, Any],
    *,
    supplied: Iterable[str],
    annotations: Mapping[str, Any] = MappingProxyType({}),
) -> list[str]:
    """What is wrong with a yaml's flat arguments for a builder, a line each.

    Args:
        section: prefix of the keys in the messages, e.g. "peft".
        builder: a function or class with annotated keyword arguments.
        arguments: the yaml's values.
        supplied: names that the run gives by itself (`target_modules`, `hidden_size`).
        annotations: types that replace those of the signature, by argument.
    """
    supplied = set(supplied)
    parameters = {
        name: parameter
        for name, parameter in inspect.signature(builder).parameters.items()
        if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
    }
    allowed = [name for name in parameters if name not in supplied]
    errors = [
        unknown_key_error(section, name, value, allowed) for name, value in arguments.items() if name not in allowed
    ]
    for name in allowed:
        if name in arguments:
            annotation = annotations.get(name) or _annotation(builder, parameters[name].annotation)
            errors += _value_problems(f"{section}.{name}", annotation, arguments[name])
        elif parameters[name].default is inspect.Parameter.empty:
            errors.append(f"{section}.{name}: is missing; {builder.__name__} needs it")
    return errors


def accepts_target_modules(builder: Callable[..., Any]) -> bool:
    """Whether a PEFT method's builder is given the names of modules that it changes."""
    return "target_modules" in inspect.signature(builder).parameters


def _annotation(builder: Callable[..., Any], annotation: Any) -> Any:
    """The type behind an annotation; Any where its name exists for type checkers only."""
    if annotation is inspect.Parameter.empty:
        return Any
    if not isinstance(annotation, str):
        return annotation
    function = builder.__init__ if inspect.isclass(builder) else builder
    try:
        return eval(annotation, getattr(function, "__globals__", {}))
    except (NameError, AttributeError, TypeError):
        return Any


def _value_problems(key: str, annotation: Any, value: Any) -> list[str]:
    from pydantic import ConfigDict, PydanticSchemaGenerationError, TypeAdapter, ValidationError

    try:
        adapter = TypeAdapter(annotation, config=ConfigDict(strict=True, allow_inf_nan=False))
    except PydanticSchemaGenerationError:
        return []
    try:
        adapter.validate_python(value)
    except ValidationError as error:
        return [describe_value_error(key, detail, annotation) for detail in error.errors()]
    return []
