"""Pydantic base class of all configuration sections."""

from collections.abc import Iterator
from typing import Annotated, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, model_validator
from pydantic_core import InitErrorDetails, PydanticCustomError

from imsm.utils.messages import INCONSISTENT
from imsm.utils.paths import PATH_NAME, is_path_name


def _check_path_name(value: str) -> str:
    if not is_path_name(value):
        raise ValueError(PATH_NAME)
    return value


Text = Annotated[str, Field(min_length=1)]
PathName = Annotated[Text, AfterValidator(_check_path_name)]
"""A name that becomes part of a path."""
FIELDS_ONLY = "fields_only"
"""Validation context that skips `StrictModel.check`."""


class StrictModel(BaseModel):
    """Immutable model without unknown keys, type coercion, NaN or infinity."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )

    def check(self) -> Iterator[tuple[str, str]]:
        """Yield (field, problem) for fields that contradict each other."""
        yield from ()

    @model_validator(mode="after")
    def _report_inconsistencies(self, info: ValidationInfo) -> Self:
        if info.context == FIELDS_ONLY:
            return self
        # A ValueError of a validator would have no field, and would stop at the first problem.
        errors: list[InitErrorDetails] = []
        for field, problem in self.check():
            kind = PydanticCustomError(INCONSISTENT, "{problem}", {"problem": problem})
            errors.append({"type": kind, "loc": (field,), "input": getattr(self, field)})
        if errors:
            raise ValidationError.from_exception_data(type(self).__name__, errors)
        return self
