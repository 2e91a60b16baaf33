"""Replay: a fixed sample of another dataset's questions, without test questions."""

from __future__ import annotations

import pytest

from imsm.data.example import Example
from imsm.data.replay import sample_replay
from imsm.data.tasks import freebaseqa, webq
from imsm.utils.errors import UserError


def questions(*texts: str, split: str = "train") -> list[Example]:
    rows = [{"question": text, "answers": ["x"]} for text in texts]
    return list(webq.examples(rows, split=split, prompt_style="paper"))


GIVEN = "rehearsal.task=webq"
FIFTY = questions(*(f"what is number {i}?" for i in range(50)))


def test_the_sample_is_fixed_ordered_and_nested() -> None:
    replay = sample_replay(FIFTY, excluded=[], given=GIVEN, ratio=0.1, num_target_examples=204)
    assert len(replay.examples) == replay.requested == 20
    assert replay.examples == sorted(replay.examples, key=FIFTY.index)
    assert replay.num_overlapping == 0
    assert replay.warning() is None
    assert sample_replay(FIFTY, excluded=[], given=GIVEN, ratio=0.1, num_target_examples=204) == replay
    smaller = sample_replay(FIFTY, excluded=[], given=GIVEN, ratio=0.1, num_target_examples=100).examples
    assert len(smaller) == 10
    assert set(map(id, smaller)) < set(map(id, replay.examples))
    assert len(sample_replay(FIFTY, excluded=[], given=GIVEN, ratio=0.1, num_target_examples=2).examples) == 1


def test_test_questions_are_excluded_and_counted() -> None:
    """Also with another case, other punctuation or another dataset's prompt."""
    candidates = questions("what is salt?", "Who sells  Pepper?", 'who wrote "salt roads"?', "why?")
    tests = questions("WHAT IS SALT?", "who sells pepper", "where?", split="test")
    parse = {"AnswersMid": [], "AnswersName": [["ann peck"]]}
    row = {"RawQuestion": 'Who wrote "Salt Roads"?', "Parses": {"Answers": [parse]}}
    tests += freebaseqa.examples([row], split="test", prompt_style="paper")
    replay = sample_replay(candidates, excluded=tests, given=GIVEN, ratio=1.0, num_target_examples=3)
    assert [example.id for example in replay.examples] == ["webq/train/3"]
    assert (replay.num_overlapping, replay.requested) == (3, 3)
    warning = str(replay.warning())
    assert "excluded 3 questions" in warning and "only 1 of 3" in warning


def test_without_any_candidate_left_it_is_a_user_error() -> None:
    with pytest.raises(UserError, match=rf"^{GIVEN}: all 2 training questions are in a test"):
        sample_replay(FIFTY[:2], excluded=FIFTY, given=GIVEN, ratio=0.1, num_target_examples=10)
