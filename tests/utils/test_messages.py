"""Error messages: key=value: problem; fix."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import pytest
from pydantic import Field, ValidationError

from imsm.utils.messages import (
    allowed_words,
    did_you_mean,
    format_errors,
    format_value,
    unknown_key_error,
    validation_errors,
)
from imsm.utils.strict_model import StrictModel


class Inner(StrictModel):
    path: str
    size: int = 1


class Section(StrictModel):
    rank: Annotated[int, Field(ge=1)] | None = 1
    kind: Literal["lora", "dora"] = "lora"
    names: list[Literal["a", "b"]] = Field(default=["a"])
    inner: Inner | None = None


def errors(**values: Any) -> list[str]:
    with pytest.raises(ValidationError) as caught:
        Section.model_validate(values)
    fields = {name: field.annotation for name, field in Section.model_fields.items()}
    return validation_errors("section", fields, caught.value.errors())


@pytest.mark.parametrize(
    ("values", "line"),
    [
        ({"rank": 0}, "section.rank=0: must be at least 1 or null"),
        ({"rank": "8"}, 'section.rank="8": must be a whole number or null'),
        ({"kind": "lra"}, "section.kind=lra: must be lora or dora; did you mean section.kind=lora?"),
        ({"names": ["a", "c"]}, "section.names.1=c: must be a or b"),
        ({"names": "a"}, 'section.names="a": must be a list, e.g. [a,b]'),
        ({"rnk": 2}, "section.rnk=2: no such key of section (rank, kind, names, inner); did you mean section.rank=2?"),
        ({"inner": {"pth": "x", "path": "y"}},
         "section.inner.pth=x: no such key of section.inner (path, size); did you mean section.inner.path=x?"),
        ({"inner": {}}, "section.inner.path: is missing"),
    ],
)  # fmt: skip
def test_a_rejected_value_is_one_line(values: dict[str, Any], line: str) -> None:
    assert errors(**values) == [line]


def test_format_errors_counts_distinct_lines() -> None:
    assert format_errors(["a=1: x", "b=2: y", "a=1: x"]).splitlines() == [
        "2 errors in the configuration",
        "  a=1: x",
        "  b=2: y",
    ]
    assert format_errors(["a=1: x"]).startswith("1 error in")


def test_values_are_written_as_on_the_command_line() -> None:
    assert format_value({"a": [None, True, 1.5, "x"]}) == "{a:[null,true,1.5,x]}"


def test_a_key_without_a_similar_one_has_no_hint() -> None:
    assert unknown_key_error("", "zzz", 1, ["seed"]) == "zzz=1: no such key (seed)"
    assert did_you_mean(None) == ""


def test_allowed_words_are_found_inside_lists_and_optionals() -> None:
    assert allowed_words(list[Literal["a"]]) == allowed_words(Literal["a"] | None) == ("a",)
    assert allowed_words(dict[str, int]) == ()
