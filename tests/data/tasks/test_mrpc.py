"""MRPC."""

from __future__ import annotations

from imsm.data.tasks import mrpc
from tests.data.tasks.convert import convert

ROW = {"sentence1": "It  rains .", "sentence2": "Rain {falls} .", "label": 1}


def test_prompt_and_answer() -> None:
    example = convert(mrpc, ROW)
    assert example.prompt.endswith("\nSentence1: It  rains .\nSentence2: Rain {falls} .\nOuput:")
    assert (example.id, example.golds, example.group) == ("mrpc/test/0", ("yes",), "mrpc/test/0")
    corrected = convert(mrpc, ROW, "corrected")
    assert corrected.prompt.endswith("\nSentence1: It rains .\nSentence2: Rain {falls} .\nOutput:")
    assert convert(mrpc, {**ROW, "label": 0}).golds == ("no",)


def test_extract() -> None:
    assert mrpc.extract("\n No.") == "no"
