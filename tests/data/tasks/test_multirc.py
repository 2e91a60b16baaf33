"""MultiRC."""

from __future__ import annotations

from typing import Any

from imsm.data.tasks import multirc


def row(question: int, answer: str, label: int) -> dict[str, Any]:
    index = {"paragraph": 3, "question": question, "answer": 0}
    text = {"paragraph": "It rained. ", "question": f"Q{question}?"}
    return {**text, "answer": answer, "label": label, "idx": index}


def test_questions_with_a_correct_bare_yes_or_no_are_used() -> None:
    rows = [row(0, "No", 0), row(0, " Yes", 1), row(0, "true", 1), row(1, "No.", 1)]
    rows += [row(2, "False", 1), row(3, "Maybe", 1)]
    found = list(multirc.examples(rows, split="train", prompt_style="paper"))
    assert [(e.id, e.golds) for e in found] == [("multirc/train/3-0", ("yes",)), ("multirc/train/3-2", ("no",))]
    assert found[0].prompt.endswith("\nQuestion: Q0? \nContent: It rained. \nAnswer:")
    assert found[0].context is not None
    assert found[0].prompt[slice(*found[0].context)] == "It rained."
    assert {example.group for example in found} == {"multirc/train/passage-3"}


def test_extract() -> None:
    assert multirc.extract("Yes") == "yes"
