"""Prompts, golds and extraction of each dataset, on invented rows."""

from __future__ import annotations

import re
from typing import Any

import pytest

from imsm.data.example import Example
from imsm.data.task import task_module
from imsm.data.tasks import cola, freebaseqa, gsm8k, jsonl, mrpc, multirc, ropes, webq
from imsm.utils.errors import UserError
from tests.data.shipped import shipped_task

PAIR = {"sentence1": "It  rains .", "sentence2": "Rain {falls} .", "label": 1}
SUM = {"question": "How  many?", "answer": "1+1=<<1+1=2>>2 pots.\n#### 2,125"}
ARTICLE = {
    "background": "Clay\nholds water. ",
    "situation": "Pot A is sand. ",
    "question": " Which? ",
    "answers": {"text": [" Pot B "]},
}


def one(module: Any, row: dict[str, Any], prompts: str = "paper") -> Example:
    (example,) = module.examples([row], split="test", prompts=prompts)
    return example


def test_mrpc() -> None:
    example = one(mrpc, PAIR)
    assert example.prompt.endswith("\nSentence1: It  rains .\nSentence2: Rain {falls} .\nOuput:")
    assert (example.id, example.golds, example.group) == ("mrpc/test/0", ("yes",), "mrpc/test/0")
    assert one(mrpc, PAIR, "corrected").prompt.endswith("\nSentence1: It rains .\nSentence2: Rain {falls} .\nOutput:")
    assert one(mrpc, {**PAIR, "label": 0}).golds == ("no",)


def test_cola() -> None:
    row = {"sentence": "It rain.", "label": 0}
    assert one(cola, row).prompt.startswith(" Given a sentence,")
    assert one(cola, row).prompt.endswith("\nSentence:It rain.\nOutput:")
    assert one(cola, row, "corrected").prompt.startswith("Given a sentence,")
    assert one(cola, row, "corrected").prompt.endswith("\nSentence: It rain.\nOutput:")


def test_a_hidden_label_is_refused() -> None:
    with pytest.raises(UserError, match="-1"):
        one(cola, {"sentence": "It rain.", "label": -1})


def test_ropes() -> None:
    example = one(ropes, ARTICLE)
    assert example.prompt.endswith("\nArticle: Clay holds water.  Pot A is sand. \nQuestion:Which?  \nAnswer:")
    assert example.context is not None
    assert example.prompt[slice(*example.context)] == "Clay holds water.  Pot A is sand. "
    assert example.golds == (" Pot B",)
    corrected = one(ropes, ARTICLE, "corrected")
    assert corrected.prompt.endswith("\nArticle: Clay holds water. Pot A is sand.\nQuestion: Which?\nAnswer:")
    assert corrected.golds == ("Pot B",)


def test_ropes_questions_on_one_article_form_a_group() -> None:
    other = {**ARTICLE, "situation": "Pot A is clay."}
    rows = [ARTICLE, other, {**ARTICLE, "question": "Why?"}]
    groups = [e.group for e in ropes.examples(rows, split="test", prompts="paper")]
    assert groups[0] == groups[2] != groups[1]


def test_gsm8k() -> None:
    example = one(gsm8k, SUM)
    assert example.prompt.endswith("formatted as: The answer is {answer}.\nHow  many?")
    assert example.golds == ("1+1=2 pots.\nThe answer is 2,125.",)
    assert one(gsm8k, SUM, "corrected").prompt.endswith("\nHow many?")
    with pytest.raises(UserError, match="####"):
        one(gsm8k, {**SUM, "answer": "2"})


def test_webq_accepts_every_answer_of_the_list() -> None:
    example = one(webq, {"question": "what towns?", "answers": ["Port Senn", "Lowmere"]})
    assert example.prompt.endswith("few words.\nQuestion: what towns?\nAnswer:")
    assert example.golds == ("Port Senn", "Lowmere")


NESTED = {"Answers": [[{"AnswersName": [["Ann Peck"]]}], [{"AnswersName": [["ann peck", "A. Peck"]]}]]}
FLAT = [{"Answers": [{"AnswersName": ["Ann Peck"]}]}, {"Answers": [{"AnswersName": ["ann peck", "A. Peck"]}]}]


@pytest.mark.parametrize("parses", [NESTED, FLAT])
def test_freebaseqa_reads_both_nestings(parses: Any) -> None:
    row = {"RawQuestion": 'Who wrote "Salt? Roads" ?', "Parses": parses}
    example = one(freebaseqa, row)
    assert example.prompt.endswith("\nQuestion:Who wrote Salt Roads ?\nAnswer:")
    assert example.golds == ("ann peck", "a. peck")
    assert one(freebaseqa, row, "corrected").prompt.endswith('\nQuestion: Who wrote "Salt? Roads"?\nAnswer:')


def test_multirc_keeps_questions_with_a_correct_bare_yes_or_no() -> None:
    def row(question: int, answer: str, label: int) -> dict[str, Any]:
        index = {"paragraph": 3, "question": question, "answer": 0}
        text = {"paragraph": "It rained. ", "question": f"Q{question}?"}
        return {**text, "answer": answer, "label": label, "idx": index}

    rows = [row(0, "No", 0), row(0, " Yes", 1), row(0, "true", 1), row(1, "No.", 1)]
    rows += [row(2, "False", 1), row(3, "Maybe", 1)]
    found = list(multirc.examples(rows, split="train", prompts="paper"))
    assert [(e.id, e.golds) for e in found] == [("multirc/train/3-0", ("yes",)), ("multirc/train/3-2", ("no",))]
    assert found[0].prompt.endswith("\nQuestion: Q0? \nContent: It rained. \nAnswer:")
    assert found[0].context is not None
    assert found[0].prompt[slice(*found[0].context)] == "It rained."
    assert {e.group for e in found} == {"multirc/train/passage-3"}


@pytest.mark.parametrize("name", ["mrpc", "cola", "multirc"])
@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("yes", "yes"),
        ("\n No.", "no"),
        ("'Yes', they do", "yes"),
        ("not", ""),
        ("None", ""),
        ("yesterday", ""),
        ("Maybe yes", ""),
        ("", ""),
    ],
)
def test_yes_or_no_is_the_first_word(name: str, text: str, answer: str) -> None:
    assert task_module(shipped_task(name)).extract(text) == answer


@pytest.mark.parametrize("name", ["ropes", "webq", "freebaseqa"])
def test_a_short_answer_is_the_first_line(name: str) -> None:
    task = shipped_task(name)
    text = " \n Port Senn \nQuestion: and now?\nAnswer: Lowmere"
    assert task_module(task).extract(text) == "Port Senn"
    stopped = stopped_text(task.stop, text)
    assert stopped == " \n Port Senn \n"
    assert task_module(task).extract(stopped) == "Port Senn"


def stopped_text(stop: str | None, text: str) -> str:
    assert stop is not None
    found = re.search(stop, text)
    assert found is not None
    return text[: found.end()]


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("The answer is 18.", "18"),
        ("so 4*5=20.\nThe answer is 2,125.", "2125"),
        ("The answer is $1,234,567.50", "1234567.50"),
        ("the ANSWER is: **-7**", "-7"),
        ("The answer is \u22127", "-7"),
        ("The answer is -$7", "-7"),
        ("The answer is 3/4 cup", "3/4"),
        ("The answer is 18.\nAnother sum.\nThe answer is 99.", "18"),
        ("The answer is plain.\nThe answer is 9.\n10", "9"),
        ("16-3=13, and 13-4=9", "9"),
        ("16-3", "3"),
        ("5 and then -12", "-12"),
        ("no number", ""),
        ("1,2,3", "3"),
    ],
)
def test_gsm8k_number(text: str, number: str) -> None:
    assert gsm8k.extract(text) == number


def test_gsm8k_stop_does_not_change_the_number() -> None:
    stop = shipped_task("gsm8k").stop
    for text in [
        "2+2=4\nThe answer is 4.\nA next sum\nThe answer is 5.\n",
        "The answer is near.\nThe answer is 6.\n7 more\n",
    ]:
        stopped = stopped_text(stop, text)
        assert len(stopped) < len(text)
        assert gsm8k.extract(stopped) == gsm8k.extract(text)


def test_jsonl_keeps_text_and_all_answers() -> None:
    for prompts in ("paper", "corrected"):
        example = one(jsonl, {"input": "Q:  a ", "output": ["b", "c"], "more": 1}, prompts)
        assert (example.prompt, example.golds) == ("Q:  a ", ("b", "c"))
    assert jsonl.extract(" one\ntwo \n") == "one\ntwo"


def test_a_context_must_lie_in_the_prompt() -> None:
    with pytest.raises(UserError, match="outside the prompt"):
        Example(id="x/0", prompt="abc", golds=("d",), context=(0, 4))
