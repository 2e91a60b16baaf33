"""Error messages of the form `key=value: problem; fix`."""

import types
from collections.abc import Iterable, Mapping
from typing import Any, Literal, Union, get_args, get_origin

from imsm.utils.options import closest_match

INCONSISTENT = "inconsistent"
"""Pydantic's error type for what `StrictModel.check` yields."""

# By pydantic's error type; its own messages name Python types, which a yaml does not have.
_PROBLEMS = {
    "int_type": "must be a whole number",
    "int_from_float": "must be a whole number",
    "float_type": "must be a number",
    "bool_type": "must be true or false",
    "string_type": "must be a string",
    "list_type": "must be a list, e.g. [a,b]",
    "dict_type": "must be a mapping, e.g. {{a:1}}",
    "model_type": "must be a mapping of keys to values",
    "model_attributes_type": "must be a mapping of keys to values",
    "finite_number": "must be finite",
    "greater_than": "must be greater than {gt}",
    "greater_than_equal": "must be at least {ge}",
    "less_than": "must be less than {lt}",
    "less_than_equal": "must be at most {le}",
    "too_short": "must have at least {min_length} element(s)",
    "string_too_short": "must not be empty",
}


def format_errors(errors: Iterable[str]) -> str:
    """Return the number of distinct errors, followed by one line per error."""
    lines = list(dict.fromkeys(errors))
    noun = "error" if len(lines) == 1 else "errors"
    return "\n".join([f"{len(lines)} {noun} in the configuration", *(f"  {line}" for line in lines)])


def validation_errors(section: str, fields: Mapping[str, Any], details: Iterable[Mapping[str, Any]]) -> list[str]:
    """Describe `ValidationError.errors()` of a section ("": the top level), one line each.

    ``fields`` has the types of the section's keys, as written in its yaml.
    """
    lines = []
    for detail in details:
        # pydantic's location has indices of lists as well, which are part of no key.
        names = [part for part in detail["loc"] if isinstance(part, str)]
        name = names[0] if names else ""
        key = ".".join([section, *names] if section else names)
        if detail["type"] == "extra_forbidden":
            siblings = fields if len(names) == 1 else _model_fields(fields.get(name))
            lines.append(unknown_key_error(key.rpartition(".")[0], names[-1], detail["input"], siblings))
        elif detail["type"] == "missing":
            words = allowed_words(fields.get(name))
            lines.append(f"{key}: is missing" + (f"; it must be {_join_or(words)}" if words else ""))
        else:
            lines.append(value_error(key, detail, fields.get(name) if len(names) == 1 else None))
    return lines


def value_error(key: str, detail: Mapping[str, Any], annotation: Any = None) -> str:
    """Describe one entry of `ValidationError.errors()`.

    ``annotation`` is the type of the field, for its allowed words and whether it may be null.
    """
    value, kind, context = detail["input"], detail["type"], detail.get("ctx", {})
    words = allowed_words(annotation)
    shown = f'"{value}"' if isinstance(value, str) and kind != "literal_error" else format_value(value)
    indices = [part for part in detail["loc"] if isinstance(part, int)]
    field, key = key, f"{key}.{indices[0]}" if indices else key
    if kind == INCONSISTENT:
        return f"{field}={format_value(value)}: {detail['msg']}"
    if kind == "value_error":
        return f"{field}={shown}: {context['error']}"
    if kind == "literal_error" and words:
        match = closest_match(str(value), map(format_value, words))
        hint = did_you_mean(match if indices or match is None else f"{key}={match}")
        return f"{key}={shown}: must be {_join_or(words)}{hint}"
    problem = _PROBLEMS[kind].format_map(context) if kind in _PROBLEMS else detail["msg"]
    if type(None) in get_args(annotation) and value is not None and not indices:
        problem += " or null"
    return f"{key}={shown}: {problem}"


def unknown_key_error(section: str, name: str, value: Any, allowed: Iterable[str]) -> str:
    """Describe a key that does not exist, with the closest one that does."""
    allowed = list(allowed)
    match = closest_match(name, allowed)
    prefix, owner = (f"{section}.", f"of {section} ") if section else ("", "")
    hint = did_you_mean(match and f"{prefix}{match}={format_value(value)}")
    return f"{prefix}{name}={format_value(value)}: no such key {owner}({', '.join(allowed) or 'it has none'}){hint}"


def did_you_mean(match: str | None) -> str:
    """Return "; did you mean ...?", or "" without a match."""
    return f"; did you mean {match}?" if match else ""


def format_value(value: Any) -> str:
    """Return a value as written on the command line."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return f"[{','.join(format_value(item) for item in value)}]"
    if isinstance(value, dict):
        return "{" + ",".join(f"{key}:{format_value(item)}" for key, item in value.items()) + "}"
    return str(value)


def shorten(text: str, length: int = 100) -> str:
    """Return a text of at most ``length`` characters for a message."""
    return text if len(text) <= length else f"{text[: length - 3]}..."


def allowed_words(annotation: Any) -> tuple[Any, ...]:
    """Return the values of the Literal in ``list[Literal[...]]``, ``Literal[...] | None`` etc., or ()."""
    if get_origin(annotation) is Literal:
        return get_args(annotation)
    if get_origin(annotation) in (list, Union, types.UnionType):
        return next((words for part in get_args(annotation) if (words := allowed_words(part))), ())
    return ()


def _model_fields(annotation: Any) -> list[str]:
    """Return the field names of the pydantic model in an annotation, or []."""
    for part in (annotation, *get_args(annotation)):
        fields = getattr(part, "model_fields", None)
        if fields is not None:
            return list(fields)
    return []


def _join_or(values: Iterable[Any]) -> str:
    *rest, last = map(format_value, values)
    return f"{', '.join(rest)} or {last}" if rest else last
