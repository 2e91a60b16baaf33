"""MultiRC with every proposed answer."""

from __future__ import annotations

from typing import Any

import pytest

from imsm.data.tasks import multirc_answers
from imsm.evaluation.scoring import score_predictions
from imsm.utils.errors import UserError
from tests.data.test_reference import HUB, examples_of


def row(question: int, answer: int, label: int) -> dict[str, Any]:
    index = {"paragraph": 3, "question": question, "answer": answer}
    return {"paragraph": "It  rained. ", "question": "Did it?", "answer": f"A{answer}", "label": label, "idx": index}


def test_each_proposed_answer_is_an_example_of_its_questions_group() -> None:
    rows = [row(0, 0, 1), row(0, 1, 0), row(1, 2, 0)]
    found = list(multirc_answers.examples(rows, split="validation", prompt_style="paper"))
    assert [example.id.rpartition("/")[2] for example in found] == ["3-0-0", "3-0-1", "3-1-2"]
    assert [example.golds for example in found] == [("yes",), ("no",), ("no",)]
    assert len({example.group for example in found}) == 2 and found[0].group == found[1].group
    assert found[1].prompt.endswith("\nQuestion: Did it?\nContent: It rained.\nAnswer: A1\nCorrect:")
    assert found[1].context is not None and found[1].prompt[slice(*found[1].context)] == "It rained."
    with pytest.raises(UserError, match="label=-1"):
        list(multirc_answers.examples([row(0, 0, -1)], split="test", prompt_style="paper"))


@pytest.mark.skipif(HUB is None, reason="needs the datasets' mirror")
def test_real_validation_set_has_the_published_numbers() -> None:
    found = examples_of("multirc_answers", "test")
    assert (len(found), len({example.id for example in found}), len({example.group for example in found})) == (
        4848,
        4848,
        953,
    )
    accepted, groups = [example.golds for example in found], [example.group for example in found]
    totals, _ = score_predictions(["f1", "question_exact_match"], [golds[0] for golds in accepted], accepted, groups)
    assert totals == {"f1": 100, "question_exact_match": 100}
    # SuperGLUE's paper: the most frequent class ("no") has F1 0; "yes" to everything has F1 59.9 and EM 0.3
    totals, _ = score_predictions(["f1", "question_exact_match"], ["yes"] * len(found), accepted, groups)
    assert totals["f1"] == pytest.approx(59.9, abs=0.1)
    assert totals["question_exact_match"] < 1
