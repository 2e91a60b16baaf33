"""What a run learns from: replay on the miniature, apart from every test, and told to the model."""

from __future__ import annotations

from functools import cache

import pytest

from imsm.config.identity import comparable_up_to_method, run_identity
from imsm.config.schema import RunConfig
from imsm.data.sources import DataSource, load_examples
from imsm.data.tokenization import TokenizedExample
from imsm.models.backbones.loading import load_tokenizer
from imsm.pipeline.data import tokenized_training_set, training_fingerprint
from imsm.utils.errors import UserError
from tests.helpers.config import config


@cache
def replaying(*overrides: str) -> RunConfig:
    return config("peft=loramoe_blc_replay", "data.max_train_examples=300", *overrides)


@cache
def learned(*overrides: str) -> tuple[list[TokenizedExample], dict]:
    return tokenized_training_set(replaying(*overrides), load_tokenizer(name_or_path="imsm:miniature"))


def test_replay_is_a_share_of_type_1() -> None:
    items, record = learned()
    replayed = [item for item in items if item.task_type == 1]
    assert {item.id.split("/")[0] for item in replayed} == {"webq"}
    assert (len(items), len(replayed)) == (330, 30)
    assert record["examples"] == 300
    assert record["replay"]["examples"] == 30
    assert record["replay"]["overlapping"] == 0  # the miniature's splits ask different facts


def test_replay_never_asks_what_a_forgetting_test_asks() -> None:
    tokenizer = load_tokenizer(name_or_path="imsm:miniature")
    run = replaying()
    asked = set()
    for name in ("webq", "freebaseqa", "multirc", "mrpc", "gsm8k"):
        task = run.tasks[name]
        source = DataSource(kind="miniature")
        tests = load_examples(task, "test", source=source, prompts="paper", limit=None)
        asked |= {tuple(example.prompt.lower().replace("?", "").split()) for example in tests}
    assert len(asked) > 1000
    replayed = [item for item in learned()[0] if item.task_type == 1]
    texts = tokenizer.batch_decode([i.prompt_ids for i in replayed], skip_special_tokens=True)
    assert not asked & {tuple(text.lower().replace("?", "").split()) for text in texts}


def test_a_question_in_a_test_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same rows as training and as a test: nothing is left."""
    import imsm.pipeline.data as stage

    def every_split_is_train(task: Task, role: str, **options: object) -> list:
        return load_examples(task, "train" if task.name == "webq" else role, **options)

    monkeypatch.setattr(stage, "load_examples", every_split_is_train)
    with pytest.raises(UserError, match="is one of a test"):
        training_fingerprint(replaying())


def test_what_is_replayed_is_part_of_what_is_learned() -> None:
    prints = [
        training_fingerprint(each)
        for each in (
            replaying(),
            replaying("peft.replay.ratio=0.2"),
            config("peft=loramoe_blc", "data.max_train_examples=300"),
        )
    ]
    assert len(set(prints)) == 3


def test_a_target_of_closed_book_questions_is_of_type_1() -> None:
    target = config("data=webq", "peft=loramoe_blc", "data.max_train_examples=20")
    items, _ = tokenized_training_set(target, load_tokenizer(name_or_path="imsm:miniature"))
    assert {item.task_type for item in items} == {1}
    assert {item.task_type for item in learned()[0] if "gsm8k" in item.id} == {0}


def test_identities_tell_replay_and_keep_the_arms_together() -> None:
    one = run_identity(replaying("method=peft"))
    other = run_identity(replaying("method=imsm"))
    assert comparable_up_to_method(one, other)
    assert one != run_identity(replaying("method=peft", "peft.replay.ratio=0.2"))
    assert "replay" not in run_identity(config("peft=loramoe_blc"))["peft"]


def test_micro_batches_decide_where_the_constraint_is_on() -> None:
    def cut(*overrides: str) -> bool:
        return "micro_batch_size" in run_identity(config("peft.lora_dropout=0", *overrides))["trainer"]

    assert cut("peft=loramoe_blc")
    assert not cut("peft=loramoe")


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("peft.replay.task=gsm8k", "is the target itself"),
        ("peft.replay.task=freebaseqa", "has no split to learn from"),
        ("peft.replay.task=webqq", "did you mean webq"),
        ("peft.replay.exclude_tests=[webq]", r"apart_from=\[webq,freebaseqa,multirc,mrpc\]"),
        ("peft.replay.exclude_tests=[webq,freebaseqa,multirc,mrpc,x]", "peft.replay.exclude_tests=x"),
        ("peft.replay.ratio=0", "peft.replay.ratio=0"),
        ("peft.num_experts=7", "peft.num_experts=8"),
    ],
)
def test_what_makes_no_replay_is_refused(override: str, told: str) -> None:
    with pytest.raises(UserError, match=told):
        replaying(override)
    assert config("peft=loramoe_blc_replay", "peft.replay.task=gsm8k", "method=original")
