"""CoLA."""

from __future__ import annotations

import pytest

from imsm.data.tasks import cola
from imsm.utils.errors import UserError
from tests.data.tasks.convert import convert

ROW = {"sentence": "It rain.", "label": 0}


def test_prompt_and_answer() -> None:
    example, corrected = convert(cola, ROW), convert(cola, ROW, "corrected")
    assert example.prompt.startswith(" Given a sentence,")
    assert example.prompt.endswith("\nSentence:It rain.\nOutput:")
    assert corrected.prompt.startswith("Given a sentence,")
    assert corrected.prompt.endswith("\nSentence: It rain.\nOutput:")
    assert example.golds == corrected.golds == ("no",)


def test_a_hidden_label_is_rejected() -> None:
    with pytest.raises(UserError, match="-1"):
        convert(cola, {**ROW, "label": -1})


def test_extract() -> None:
    assert cola.extract("'Yes', it is") == "yes"
