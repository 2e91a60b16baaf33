"""Checks of single overrides, with the nearest name in the message."""

import shlex
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from hydra.core.override_parser.types import Override, Sweep

from imsm.data.task import Task
from imsm.utils.errors import UserError
from imsm.utils.messages import format_value, unknown_key_error
from imsm.utils.options import closest_match, unknown_option

_OPEN_MAPPINGS = ("backbone.module_names", "backbone.architecture", "peft.target_roles_by_backbone", "peft.recipes")

_SEVERAL = ("logger",)
"""Groups of which a run can select several options, e.g. ``logger=[wandb,trackio]``; Hydra merges their values."""


def not_an_override(text: str, options: Mapping[str, Sequence[str]]) -> str:
    """Return the message for an argument without `=`, with the options of that name or the nearest one."""
    words = {f"{group}={name}": name for group, names in options.items() for name in names}
    name = text if text in words.values() else closest_match(text, words.values())
    near = [word for word, option in words.items() if option == name]
    hint = f"did you mean {' or '.join(near)}?" if near else "see imsm run --help"
    return f"{text}: must have the form key=value; {hint}"


def check_blanks(overrides: Sequence[str]) -> None:
    """Reject overrides that blanks split: ``gate.rank = 4``, ``method=original, peft``.

    Raises:
        UserError: with the override without the blanks.
    """
    group: list[str] = []
    for text in overrides:
        joins = text.startswith(("=", ",")) or (group and group[-1].endswith(("=", ",")) and "=" not in text)
        if group and not joins:
            _check_whole(group)
            group = []
        group.append(text)
    _check_whole(group)


def _check_whole(group: Sequence[str]) -> None:
    if len(group) > 1:
        raise UserError(f"{' '.join(group)}: must have no blanks; write {shlex.quote(''.join(group))}")


def check_repeated(overrides: Sequence[Override]) -> None:
    """Reject two values of one key, of which Hydra would silently take the last.

    Raises:
        UserError: naming both.
    """
    given: dict[str, str] = {}
    for override in overrides:
        line, key = str(override.input_line), override.get_key_element().lstrip("+~")
        if given.setdefault(key, line) != line:
            raise UserError(f"{line}: conflicts with {given[key]}; remove one of them")


def not_parsed(text: str, reason: str, parses: Callable[[str], bool]) -> str:
    """Return the message for an override that Hydra cannot parse, with the override as it must be quoted.

    ``parses`` returns whether Hydra can parse a text.
    """
    key, _, value = text.partition("=")
    if value.endswith(","):
        return f"{text}: ends with a comma; remove it, or write all values without blanks"
    if value.startswith("="):
        return f"{text}: has two equal signs; write {key}={value.lstrip('=')}"
    quoted = f'{key}="{value}"'
    if parses(quoted):
        return f"{text}: has special characters in its value; quote it: {shlex.quote(quoted)}"
    return f"{text}: cannot be parsed ({reason}); quote a value with special characters, e.g. 'run_dir=\"a b\"'"


def check_option(override: Override, names: Sequence[str], choices: Mapping[str, str]) -> None:
    """Check that an override selects one of the group's options, ``names``, or several where that is possible.

    ``choices`` has the line of each previous override by group.

    Raises:
        UserError: with the options and the nearest name.
    """
    group, line = override.key_or_group, override.input_line
    listed = ", ".join(names)
    if override.is_delete():
        raise UserError(f"~{group}: a run needs one option of {group} ({listed})")
    value = override.value()
    if override.is_add() or override.is_force_add():
        raise UserError(f"{line}: write {group}={format_value(value)} without a +")
    values = value if isinstance(value, list) and value and group in _SEVERAL else [value]
    for each in values:
        if isinstance(each, list | dict | Sweep):
            raise UserError(f"{line}: must be one option of {group} ({listed})")
        if str(each) not in names:
            raise UserError(unknown_option(group, format_value(each), names))
    # Hydra silently takes the last of two options; a repeated equal one is harmless.
    if choices.get(group, line) != line:
        raise UserError(f"{line}: conflicts with {choices[group]}; remove one of them")


def check_key(override: Override, tree: Any) -> None:
    """Check that the key of a value exists, or that `+` adds a new one.

    Raises:
        UserError: with the nearest name.
    """
    key, line, parts = override.key_or_group, override.input_line, override.key_or_group.split(".")
    depth, node = 0, tree
    while depth < len(parts) and isinstance(node, dict) and parts[depth] in node:
        node = node[parts[depth]]
        depth += 1
    if depth == len(parts) and override.is_add() and not isinstance(node, dict | list):
        raise UserError(f"{line}: the key exists already; remove the +")
    if depth == len(parts) or override.is_add() or override.is_force_add():
        return
    if override.is_delete():
        raise UserError(f"{line}: no such key")
    if not isinstance(node, dict):
        raise UserError(f"{line}: {'.'.join(parts[:depth])} has no keys")
    owner, written = ".".join(parts[:depth]), f"{key}={format_value(override.value())}"
    names = [name for name in node if name != "_target_"]
    message = unknown_key_error(owner, parts[depth], override.value(), names)
    if not owner and "did you mean" not in message:
        near = [f"{name}.{written}" for name in names if isinstance(node[name], dict) and parts[0] in node[name]]
        message += f"; did you mean {' or '.join(near)}?" if near else ""
    # Elsewhere a + would only defer the error: validation rejects the key.
    if owner.startswith(_OPEN_MAPPINGS):
        message += f"; +{written} adds it"
    raise UserError(message)


def check_task_sequence(overrides: Sequence[Override]) -> None:
    """Reject settings of one dataset next to a task sequence, which would be ignored."""
    sequence = [override for override in overrides if override.key_or_group == "task_sequence"]
    if not sequence or sequence[-1].value() is None:
        return
    # Keys such as data.max_train_examples are shared by all tasks of the sequence and stay allowed.
    keys = {f"data.{name}" for name in Task.model_fields}
    for override in overrides:
        if override.key_or_group == "data" or ".".join(override.key_or_group.split(".")[:2]) in keys:
            raise UserError(
                f"{override.input_line}: {sequence[-1].input_line} selects the datasets; remove one of the two"
            )
