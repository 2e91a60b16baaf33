"""Regular expressions in PEFT configurations: those that could take very long to match are rejected.

PEFT matches them against the name of every module. A saved configuration is untrusted, and Python's `re` has no time
limit, so a bound on the number of steps is computed from the pattern.
"""

import math
import re
from collections.abc import Iterator
from typing import Any

_NAME_LENGTH = 60
_MAX_STEPS = 2**16
"""Steps for one module name of ``_NAME_LENGTH`` characters; a model has hundreds of names."""
_MAX_CHARACTERS = 1000


def slow_pattern(config: Any) -> str | None:
    """Return the field and the pattern that may take too long to match, with the reason; None if there is none."""
    for field, pattern in _patterns(config):
        if not _is_cheap(pattern):
            return (
                f"{field}={pattern[:80]!r}: may take very long to match; write a list of module names, or a pattern "
                "with few alternatives and quantifiers and without a repeated group"
            )
    return None


def _patterns(config: Any) -> Iterator[tuple[str, str]]:
    """Yield what PEFT may use as a regular expression, with the name of its field."""
    for field, value in vars(config).items():
        if "pattern" in field or "modules" in field or field in ("target_parameters", "target_svd_config"):
            values = (
                [value] if isinstance(value, str) else value if isinstance(value, list | set | tuple | dict) else ()
            )
            yield from ((field, each) for each in values if isinstance(each, str))


def _is_cheap(pattern: str) -> bool:
    if len(pattern) > _MAX_CHARACTERS:
        return False
    # without escaped characters, character classes, and the question marks of (?:...) and of lazy quantifiers
    plain = re.sub(r"\\.|\[[^\]]*\]", "x", pattern)
    plain = re.sub(r"(?<=[*+?}])\?", "", plain.replace("(?", "("))
    # a repeated group can take exponentially many steps: (a+)+
    if re.search(r"\)[*+{]", plain):
        return False
    quantifiers = len(re.findall(r"[*+?{]", plain))
    # n characters are divided among q quantifiers in about n^q / q! ways, for each choice among the alternatives
    steps = _NAME_LENGTH**quantifiers / math.factorial(quantifiers) * _choices(plain)
    return bool(steps <= _MAX_STEPS)


def _choices(plain: str) -> int:
    """Return the product over all groups of their numbers of alternatives."""
    choices, open_groups = 1, [1]
    for character in plain:
        if character == "(":
            open_groups.append(1)
        elif character == "|":
            open_groups[-1] += 1
        elif character == ")" and len(open_groups) > 1:
            choices *= open_groups.pop()
    return choices * math.prod(open_groups)
