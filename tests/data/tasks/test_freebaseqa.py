"""FreebaseQA."""

from __future__ import annotations

from typing import Any

import pytest

from imsm.data.tasks import freebaseqa
from imsm.utils.errors import UserError
from tests.data.shipped import shipped_task
from tests.data.tasks.convert import convert, cut_at_stop

NESTED = {"Answers": [[{"AnswersName": [["Ann Peck"]]}], [{"AnswersName": [["ann peck", "A. Peck"]]}]]}
FLAT = [{"Answers": [{"AnswersName": ["Ann Peck"]}]}, {"Answers": [{"AnswersName": ["ann peck", "A. Peck"]}]}]
QUESTION = 'Who wrote "Salt? Roads" ?'


@pytest.mark.parametrize("parses", [NESTED, FLAT])
def test_both_nestings_are_read(parses: Any) -> None:
    row = {"RawQuestion": QUESTION, "Parses": parses}
    example = convert(freebaseqa, row)
    assert example.prompt.endswith("\nQuestion:Who wrote Salt Roads ?\nAnswer:")
    assert example.golds == ("ann peck", "a. peck")
    corrected = convert(freebaseqa, row, "corrected")
    assert corrected.prompt.endswith('\nQuestion: Who wrote "Salt? Roads"?\nAnswer:')


@pytest.mark.parametrize("parses", ["Ann Peck", {"Answers": []}, [{"Answers": [{"AnswersName": [3]}]}]])
def test_parses_without_names_are_rejected(parses: Any) -> None:
    with pytest.raises(UserError):
        convert(freebaseqa, {"RawQuestion": QUESTION, "Parses": parses})


def test_extract_is_the_first_line_where_generation_stops() -> None:
    response = " \n Port Senn \nQuestion: and now?\nAnswer: Lowmere"
    stopped = cut_at_stop(shipped_task("freebaseqa").stop, response)
    assert stopped == " \n Port Senn \n"
    assert freebaseqa.extract(response) == freebaseqa.extract(stopped) == "Port Senn"
