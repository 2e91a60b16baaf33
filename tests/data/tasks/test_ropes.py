"""ROPES."""

from __future__ import annotations

from imsm.data.tasks import ropes
from tests.data.shipped import shipped_task
from tests.data.tasks.convert import convert, cut_at_stop

ROW = {
    "background": "Clay\nholds water. ",
    "situation": "Pot A is sand. ",
    "question": " Which? ",
    "answers": {"text": [" Pot B "]},
}


def test_prompt_context_and_answer() -> None:
    example = convert(ropes, ROW)
    assert example.prompt.endswith("\nArticle: Clay holds water.  Pot A is sand. \nQuestion:Which?  \nAnswer:")
    assert example.context is not None
    assert example.prompt[slice(*example.context)] == "Clay holds water.  Pot A is sand. "
    assert example.golds == (" Pot B",)
    corrected = convert(ropes, ROW, "corrected")
    assert corrected.prompt.endswith("\nArticle: Clay holds water. Pot A is sand.\nQuestion: Which?\nAnswer:")
    assert corrected.golds == ("Pot B",)


def test_questions_on_one_article_form_a_group() -> None:
    rows = [ROW, {**ROW, "situation": "Pot A is clay."}, {**ROW, "question": "Why?"}]
    groups = [example.group for example in ropes.examples(rows, split="test", prompt_style="paper")]
    assert groups[0] == groups[2] != groups[1]


def test_extract_is_the_first_line_where_generation_stops() -> None:
    response = " \n Port Senn \nQuestion: and now?\nAnswer: Lowmere"
    stopped = cut_at_stop(shipped_task("ropes").stop, response)
    assert stopped == " \n Port Senn \n"
    assert ropes.extract(response) == ropes.extract(stopped) == "Port Senn"
