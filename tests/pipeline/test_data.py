"""Training examples of a run: replay on the miniature, and its exclusion of test questions."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import pytest

from imsm.config.identity import comparable_up_to_method, run_identity
from imsm.config.schema import RunConfig
from imsm.data.sources import DataSource, load_examples
from imsm.data.tokenization import TokenizedExample
from imsm.models.backbones.loading import load_tokenizer
from imsm.pipeline import data
from imsm.pipeline.data import tokenized_training_set, training_fingerprint
from imsm.pipeline.plan.plan import make_plan
from imsm.utils.errors import UserError
from tests.helpers.config import config
from tests.helpers.tiny_backbone import save_backbone


@cache
def replaying(*overrides: str) -> RunConfig:
    return config("peft=loramoe_blc_replay", "data.max_train_examples=300", *overrides)


@cache
def training_set(*overrides: str) -> tuple[list[TokenizedExample], dict]:
    return tokenized_training_set(replaying(*overrides), load_tokenizer(name_or_path="imsm:miniature"))


def test_replay_adds_a_share_of_examples_of_type_1() -> None:
    examples, record = training_set()
    replayed = [example for example in examples if example.task_type == 1]
    assert {example.id.split("/")[0] for example in replayed} == {"webq"}
    assert (len(examples), len(replayed)) == (330, 30)
    assert record["examples"] == 300
    assert record["replay"]["examples"] == 30
    assert record["replay"]["overlapping"] == 0  # the miniature's splits have no question in common


def test_no_replayed_question_occurs_in_a_forgetting_test() -> None:
    tokenizer = load_tokenizer(name_or_path="imsm:miniature")
    run = replaying()
    test_questions = set()
    for name in ("webq", "freebaseqa", "multirc", "mrpc", "gsm8k"):
        task = run.tasks[name]
        source = DataSource(kind="miniature")
        tests = load_examples(task, "test", source=source, prompt_style="paper", limit=None)
        test_questions |= {tuple(example.prompt.lower().replace("?", "").split()) for example in tests}
    assert len(test_questions) > 1000
    replayed = [example for example in training_set()[0] if example.task_type == 1]
    texts = tokenizer.batch_decode([i.prompt_ids for i in replayed], skip_special_tokens=True)
    assert not test_questions & {tuple(text.lower().replace("?", "").split()) for text in texts}


def test_replay_without_any_question_outside_the_tests_is_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    def train_split_as_test(task: object, role: str, **options: object) -> list:
        return load_examples(task, "train" if task.name == "webq" else role, **options)

    monkeypatch.setattr(data, "load_examples", train_split_as_test)
    for run, given in (
        (replaying(), "peft.replay.task"),
        (config("method=peft", "rehearsal=replay"), "rehearsal.task"),
    ):
        with pytest.raises(UserError, match=rf"^{given}=webq: all \d+ training questions are in a test"):
            training_fingerprint(run)


def test_the_training_hash_depends_on_replay() -> None:
    hashes = [
        training_fingerprint(each)
        for each in (
            replaying(),
            replaying("peft.replay.ratio=0.2"),
            config("peft=loramoe_blc", "data.max_train_examples=300"),
        )
    ]
    assert len(set(hashes)) == 3


def test_a_closed_book_target_is_of_type_1() -> None:
    target = config("data=webq", "peft=loramoe_blc", "data.max_train_examples=20")
    examples, _ = tokenized_training_set(target, load_tokenizer(name_or_path="imsm:miniature"))
    assert {example.task_type for example in examples} == {1}
    assert {example.task_type for example in training_set()[0] if "gsm8k" in example.id} == {0}


def test_replay_is_part_of_the_identity_and_keeps_methods_comparable() -> None:
    peft = run_identity(replaying("method=peft"))
    imsm = run_identity(replaying("method=imsm"))
    assert comparable_up_to_method(peft, imsm)
    assert peft != run_identity(replaying("method=peft", "peft.replay.ratio=0.2"))
    assert "replay" not in run_identity(config("peft=loramoe_blc"))["peft"]


def test_the_micro_batch_size_is_part_of_the_identity_with_the_balancing_loss() -> None:
    def has_micro_batch_size(*overrides: str) -> bool:
        return "micro_batch_size" in run_identity(config("peft.lora_dropout=0", *overrides))["trainer"]

    assert has_micro_batch_size("peft=loramoe_blc")
    assert not has_micro_batch_size("peft=loramoe")


@pytest.mark.parametrize(
    ("override", "key"),
    [
        ("peft.replay.task=gsm8k", "peft.replay.task=gsm8k: "),
        ("peft.replay.task=freebaseqa", "peft.replay.task=freebaseqa: "),
        ("peft.replay.task=webqq", "did you mean webq"),
        ("peft.replay.exclude_tests=[webq]", r"exclude_tests=\[webq,freebaseqa,multirc,mrpc\]"),
        ("peft.replay.exclude_tests=[webq,freebaseqa,multirc,mrpc,x]", "peft.replay.exclude_tests=x"),
        ("peft.replay.ratio=0", "peft.replay.ratio=0"),
        ("peft.num_experts=7", "peft.num_experts=8"),
    ],
)
def test_invalid_replay_settings_are_rejected(override: str, key: str) -> None:
    with pytest.raises(UserError, match=key):
        replaying(override)
    assert config("peft=loramoe_blc_replay", "peft.replay.task=gsm8k", "method=original")


def test_examples_fit_into_the_positions_of_the_backbone(tmp_path: Path) -> None:
    texts = [f"word{n}" for n in range(30)] + ["yes"]
    backbone = save_backbone(tmp_path / "backbone", texts=[" ".join(texts)])
    settings = json.loads((backbone / "config.json").read_text())
    rows = [{"input": " ".join(texts[:length]), "output": "yes"} for length in (5, 30)]
    for split in ("train", "test"):
        (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    run = config(
        f"backbone.name_or_path={backbone}",
        "backbone.closed_vocabulary=false",
        "data=jsonl",
        f"data.local_dir={tmp_path}",
        "data.max_new_tokens=4",
        "evaluation.tasks=[jsonl]",
    )
    tokenizer = load_tokenizer(name_or_path=str(backbone))
    assert len(tokenized_training_set(run, tokenizer)[0]) == 2

    (backbone / "config.json").write_text(json.dumps(settings | {"max_position_embeddings": 31}))
    kept, record = tokenized_training_set(run, tokenizer)
    assert (len(kept), record["dropped"]) == (1, 1)
    with pytest.raises(UserError, match=r"data\.max_prompt_tokens=27"):
        data.load_eval_sets(run, tokenizer)
    assert any("data.max_prompt_tokens=27 would fit" in note for note in make_plan(run).notes)

    virtual = config("peft=prompt_tuning", "method=peft", *run_arguments(backbone))
    assert data.max_positions(virtual) == 31 - virtual.peft.arguments()["num_virtual_tokens"]
    assert data.max_positions(config("method=original", *run_arguments(backbone))) == 31


def run_arguments(backbone: Path) -> list[str]:
    return [f"backbone.name_or_path={backbone}", "backbone.closed_vocabulary=false"]
