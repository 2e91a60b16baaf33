"""Checks of an example."""

from __future__ import annotations

from typing import Any

import pytest

from imsm.data.example import Example
from imsm.utils.errors import UserError


def test_the_group_is_the_id_by_default() -> None:
    assert Example(id="x/0", prompt="abc", golds=("d",)).group == "x/0"
    assert Example(id="x/0", prompt="abc", golds=("d",), group="x/passage-1").group == "x/passage-1"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"golds": ()}, "is empty"),
        ({"golds": ("d", " ")}, "' '"),
        ({"golds": (3,)}, "3"),
        ({"context": (0, 4)}, "outside the prompt"),
        ({"context": (2, 1)}, "outside the prompt"),
    ],
)
def test_invalid_values_are_rejected_with_the_id(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=f"^x/0: .*{message}"):
        Example(**{"id": "x/0", "prompt": "abc", "golds": ("d",), **changes})
