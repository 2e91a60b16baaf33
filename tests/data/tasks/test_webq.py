"""WebQuestions."""

from __future__ import annotations

from imsm.data.tasks import webq
from tests.data.shipped import shipped_task
from tests.data.tasks.convert import convert, cut_at_stop


def test_every_answer_of_the_list_is_accepted() -> None:
    example = convert(webq, {"question": "what towns?", "answers": ["Port Senn", "Lowmere"]})
    assert example.prompt.endswith("few words.\nQuestion: what towns?\nAnswer:")
    assert example.golds == ("Port Senn", "Lowmere")


def test_extract_is_the_first_line_where_generation_stops() -> None:
    response = " \n Port Senn \nQuestion: and now?\nAnswer: Lowmere"
    stopped = cut_at_stop(shipped_task("webq").stop, response)
    assert stopped == " \n Port Senn \n"
    assert webq.extract(response) == webq.extract(stopped) == "Port Senn"
