"""What is wrong with a value, in one line: the value, what is allowed, the nearest name."""

from __future__ import annotations

import types
from collections.abc import Iterable, Mapping
from typing import Any, Literal, Union, get_args, get_origin

from imsm.utils.options import closest_match

_KINDS = {
    "int_type": "must be a whole number",
    "int_from_float": "must be a whole number",
    "float_type": "must be a number",
    "bool_type": "must be true or false",
    "string_type": "must be a text",
    "list_type": "must be a list, e.g. [a,b]",
    "dict_type": "must be a mapping, e.g. {{a:1}}",
    "model_type": "must be a mapping of keys to values",
    "model_attributes_type": "must be a mapping of keys to values",
    "finite_number": "must be finite",
    "greater_than": "must be greater than {gt}",
    "greater_than_equal": "must be at least {ge}",
    "less_than": "must be less than {lt}",
    "less_than_equal": "must be at most {le}",
    "too_short": "must hold at least {min_length}",
    "string_too_short": "must not be empty",
}


def format_errors(problems: Iterable[str]) -> str:
    """All problems in one text: how many, then a line each, without repetitions."""
    lines = list(dict.fromkeys(problems))
    noun = "problem" if len(lines) == 1 else "problems"
    return "\n".join([f"{len(lines)} {noun} in the configuration", *(f"  {x}" for x in lines)])


def describe_value_error(key: str, detail: Mapping[str, Any], annotation: Any = None) -> str:
    """One line about a value that pydantic refused.

    Args:
        key: the value's dotted name.
        detail: one entry of `ValidationError.errors()`.
        annotation: the field's type; says whether null would do, and which words are allowed.
    """
    places = [part for part in detail["loc"] if isinstance(part, int)]
    value, kind, context = detail["input"], detail["type"], detail.get("ctx", {})
    shown = f'"{value}"' if isinstance(value, str) and kind != "literal_error" else format_value(value)
    words = allowed_words(annotation)
    if kind == "literal_error" and words:
        allowed = f"must be {_either([format_value(word) for word in words])}"
        guess = closest_match(str(value), [format_value(word) for word in words])
        where = f"{key}.{places[0]}" if places else key
        hint = f"; did you mean {guess if places else f'{key}={guess}'}?" if guess else ""
        return f"{where}={shown}: {allowed}{hint}"
    if kind == "value_error":
        return f"{key}={shown}: {context['error']}"
    allowed = _KINDS[kind].format_map(context) if kind in _KINDS else detail["msg"]
    if type(None) in get_args(annotation) and value is not None and not places:
        allowed += " or null"
    where = f"{key}.{places[0]}" if places else key
    return f"{where}={shown}: {allowed}"


def describe_errors(section: str, fields: Mapping[str, Any], errors: Iterable[Mapping[str, Any]]) -> list[str]:
    """One line per error of a section of the configuration.

    Args:
        section: the section's name, "" for the top level.
        fields: the section's keys as written in a yaml, and their types.
        errors: `ValidationError.errors()`.
    """
    lines = []
    for detail in errors:
        names = [str(part) for part in detail["loc"] if isinstance(part, str)]
        name = names[0] if names else ""
        key = ".".join([section, *names] if section else names)
        if detail["type"] == "extra_forbidden":
            owner = ".".join([section, *names[:-1]] if section else names[:-1])
            siblings = fields if len(names) == 1 else _nested(fields.get(name))
            lines.append(unknown_key_error(owner, names[-1], detail["input"], siblings))
        elif detail["type"] == "missing":
            words = allowed_words(fields.get(name))
            hint = f"; it must be {_either([format_value(word) for word in words])}" if words else ""
            lines.append(f"{key}: is missing{hint}")
        else:
            lines.append(describe_value_error(key, detail, fields.get(name) if len(names) == 1 else None))
    return lines


def unknown_key_error(section: str, name: str, value: Any, allowed: Iterable[str]) -> str:
    """One line about a key that does not exist."""
    allowed = list(allowed)
    guess = closest_match(name, allowed)
    prefix = f"{section}." if section else ""
    hint = f"; did you mean {prefix}{guess}={format_value(value)}?" if guess else ""
    owner = f"of {section} " if section else ""
    names = ", ".join(allowed) or "it has none"
    return f"{prefix}{name}={format_value(value)}: no such key {owner}({names}){hint}"


def format_value(value: Any) -> str:
    """A value as one writes it on the command line."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return f"[{','.join(format_value(item) for item in value)}]"
    if isinstance(value, dict):
        return "{" + ",".join(f"{key}:{format_value(item)}" for key, item in value.items()) + "}"
    return str(value)


def allowed_words(annotation: Any) -> tuple[Any, ...]:
    """The words of the Literal inside an annotation (`list[Literal[...]]`, `... | None`)."""
    if get_origin(annotation) is Literal:
        return get_args(annotation)
    inner = get_args(annotation)
    if get_origin(annotation) in (list, Union, types.UnionType):
        return next((words for part in inner if (words := allowed_words(part))), ())
    return ()


def _nested(annotation: Any) -> list[str]:
    """The keys of a model inside an annotation, if there is one."""
    for part in (annotation, *get_args(annotation)):
        fields = getattr(part, "model_fields", None)
        if fields is not None:
            return list(fields)
    return []


def _either(words: list[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} or {words[-1]}"
