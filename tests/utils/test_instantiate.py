"""Targets are imported by name, and arguments are checked against their signature."""

from __future__ import annotations

from typing import Annotated, Any

import pytest
from annotated_types import Ge

from imsm.utils.instantiate import Count, Probability, accepts_target_modules, argument_errors


def build(target_modules: list[str], rank: Count, dropout: Probability = 0.0, unresolved: Undefined = 1) -> None:  # type: ignore[name-defined]  # noqa: F821
    """A factory with a range, a default and an annotation that cannot be evaluated."""


class Gate:
    def __init__(self, hidden_size: int, low: float = 0.0) -> None:
        self.size = hidden_size


def errors(**arguments: Any) -> list[str]:
    return argument_errors("peft", build, arguments, supplied=["target_modules"])


@pytest.mark.parametrize(
    ("arguments", "starts"),
    [
        ({"rank": 1}, []),
        ({"rank": 1, "unresolved": object()}, []),
        ({"rank": 0}, ["peft.rank=0: must be at least 1"]),
        ({"rank": 1, "dropout": 1.0}, ["peft.dropout=1.0: must be less than 1"]),
        ({}, ["peft.rank: is missing"]),
        ({"rank": 1, "rnk": 2}, ["peft.rnk=2: no such key of peft (rank, dropout, unresolved)"]),
        ({"rank": "a", "dropout": "b"}, ['peft.rank="a": ', 'peft.dropout="b": ']),
        ({"rank": 1, "target_modules": []}, ["peft.target_modules=[]: no such key"]),
    ],
)
def test_arguments_are_checked_against_the_signature(arguments: dict[str, Any], starts: list[str]) -> None:
    lines = errors(**arguments)
    assert len(lines) == len(starts)
    assert all(line.startswith(start) for line, start in zip(lines, starts, strict=True))


def test_given_annotations_replace_those_of_the_signature() -> None:
    lines = argument_errors(
        "peft", build, {"rank": 3}, supplied=["target_modules"], annotations={"rank": Annotated[int, Ge(5)]}
    )
    assert lines == ["peft.rank=3: must be at least 5"]


def test_the_signature_of_a_class_is_that_of_its_constructor() -> None:
    assert argument_errors("gate", Gate, {"low": 1.0}, supplied=["hidden_size"]) == []
    assert argument_errors("gate", Gate, {"low": "x"}, supplied=["hidden_size"]) == ['gate.low="x": must be a number']


def test_accepts_target_modules() -> None:
    assert accepts_target_modules(build) and not accepts_target_modules(Gate)
