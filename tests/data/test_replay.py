"""Replay: a fixed share of another dataset's questions, and none that a test asks."""

from __future__ import annotations

import pytest

from imsm.data.example import Example
from imsm.data.replay import sample_replay
from imsm.data.tasks import freebaseqa, webq
from imsm.utils.errors import UserError


def questions(*texts: str, split: str = "train") -> list[Example]:
    rows = [{"question": text, "answers": ["x"]} for text in texts]
    return list(webq.examples(rows, split=split, prompts="paper"))


MANY = questions(*(f"what is number {i}?" for i in range(50)))


def test_a_share_of_the_targets_examples_the_same_for_every_run() -> None:
    replay = sample_replay(MANY, apart_from=[], share=0.1, target=204)
    assert len(replay.examples) == replay.wanted == 20
    assert replay.examples == sorted(replay.examples, key=MANY.index)
    assert replay.overlapping == 0
    assert replay.warning() is None
    assert sample_replay(MANY, apart_from=[], share=0.1, target=204) == replay
    fewer = sample_replay(MANY, apart_from=[], share=0.1, target=100).examples
    assert len(fewer) == 10
    assert set(map(id, fewer)) < set(map(id, replay.examples))
    assert len(sample_replay(MANY, apart_from=[], share=0.1, target=2).examples) == 1


def test_what_a_test_asks_is_left_out_and_counted() -> None:
    """In other case, with other punctuation, or in another dataset's prompt."""
    candidates = questions("what is salt?", "Who sells  Pepper?", 'who wrote "salt roads"?', "why?")
    tests = questions("WHAT IS SALT?", "who sells pepper", "where?", split="test")
    parse = {"AnswersMid": [], "AnswersName": [["ann peck"]]}
    row = {"RawQuestion": 'Who wrote "Salt Roads"?', "Parses": {"Answers": [parse]}}
    tests += freebaseqa.examples([row], split="test", prompts="paper")
    replay = sample_replay(candidates, apart_from=tests, share=1.0, target=3)
    assert [example.id for example in replay.examples] == ["webq/train/3"]
    assert (replay.overlapping, replay.wanted) == (3, 3)
    warning = str(replay.warning())
    assert "3 questions that a test asks were left out" in warning
    assert "only 1 of 3" in warning


def test_nothing_left_is_an_error() -> None:
    with pytest.raises(UserError, match=r"peft\.replay\.task"):
        sample_replay(MANY[:2], apart_from=MANY, share=0.1, target=10)
