"""StrictModel: no coercion, and consistency checks with one error per field."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from pydantic import ValidationError

from imsm.utils.strict_model import FIELDS_ONLY, INCONSISTENT, StrictModel


class Span(StrictModel):
    start: int = 0
    end: int = 1

    def check(self) -> Iterator[tuple[str, str]]:
        if self.end < self.start:
            yield "end", "{is} before start"


class Page(StrictModel):
    span: Span


def test_an_inconsistency_is_an_error_of_its_field() -> None:
    with pytest.raises(ValidationError) as caught:
        Page.model_validate({"span": {"start": 3}})
    (error,) = caught.value.errors()
    assert (error["type"], error["loc"], error["input"]) == (INCONSISTENT, ("span", "end"), 1)
    assert error["msg"] == "{is} before start"


def test_fields_only_accepts_inconsistent_but_not_mistyped_fields() -> None:
    assert Page.model_validate({"span": {"start": 3}}, context=FIELDS_ONLY).span.start == 3
    with pytest.raises(ValidationError):
        Page.model_validate({"span": {"start": "3"}}, context=FIELDS_ONLY)


@pytest.mark.parametrize("values", [{"start": "1"}, {"start": 1.0}, {"middle": 1}])
def test_text_floats_and_unknown_keys_are_rejected(values: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        Span.model_validate(values)


def test_it_is_immutable() -> None:
    with pytest.raises(ValidationError):
        Span().start = 2  # type: ignore[misc]
