"""Task sequences: names and identities of their stages, and invalid sequences."""

from __future__ import annotations

from itertools import pairwise

import pytest

from imsm.config.compose import ConfigComposer
from imsm.config.identity import comparable_up_to_method, run_identity, run_name
from imsm.config.schema import RunConfig
from imsm.config.stages import expand_stages, final_stage
from imsm.utils.errors import UserError
from tests.helpers.config import config

SEQUENCE = "task_sequence=[gsm8k,mrpc,cola]"


def names(*overrides: str) -> list[str]:
    return [run_name(stage) for stage in expand_stages(config(*overrides))]


def test_the_first_stage_is_the_ordinary_run_of_its_task() -> None:
    evaluated = "evaluation.tasks=[mrpc,cola,webq,freebaseqa,multirc]"
    first, _ = expand_stages(config("task_sequence=[mrpc,cola]", "data.max_train_examples=40"))
    assert first.to_dict() == config("data=mrpc", evaluated, "data.max_train_examples=40").to_dict()
    assert "previous_stage" not in run_identity(first)


def test_a_later_stage_is_the_run_of_its_task_plus_the_previous_stage() -> None:
    stages = expand_stages(config(SEQUENCE, "method=peft"))
    assert [stage.data.name for stage in stages] == ["gsm8k", "mrpc", "cola"]
    assert [run_name(stage).rpartition("-")[0] for stage in stages] == [
        "mini-lora-gsm8k-peft-s0",
        "mini-lora-gsm8k_mrpc-peft-s0",
        "mini-lora-gsm8k_mrpc_cola-peft-s0",
    ]
    for previous, stage in pairwise(stages):
        assert stage.previous_stage is not None
        assert stage.previous_stage.run == run_name(previous)
        alone = config(f"data={stage.data.name}", "method=peft")
        identity = run_identity(stage)
        assert identity.pop("previous_stage") == run_identity(previous)
        assert identity == run_identity(alone)
    assert all(list(stage.tasks)[:3] == ["gsm8k", "mrpc", "cola"] for stage in stages)


def test_sequences_share_stages_only_up_to_their_first_difference() -> None:
    three, two = names(SEQUENCE), names("task_sequence=[gsm8k,mrpc]")
    assert three[:2] == two
    assert not set(names("task_sequence=[mrpc,gsm8k]")) & set(two)
    other = names("task_sequence=[gsm8k,mrpc]", "seed=1")
    assert not set(other) & set(two)


def test_a_saved_stage_keeps_its_identity() -> None:
    stage = final_stage(config(SEQUENCE))
    again = RunConfig.from_dict(stage.to_dict())
    assert run_identity(again) == run_identity(stage)
    assert run_name(again) == run_name(stage)


def test_without_a_sequence_the_run_is_unchanged() -> None:
    chosen = config("data=mrpc")
    assert expand_stages(chosen) == [chosen]
    assert not {"previous_stage", "task_sequence"} & set(run_identity(chosen))


def test_the_original_is_one_run_on_all_tasks() -> None:
    (original,) = expand_stages(config("task_sequence=[gsm8k,mrpc]", "method=original"))
    assert list(original.tasks)[:2] == ["gsm8k", "mrpc"]
    assert run_name(original) == run_name(config("method=original"))


def test_peft_and_imsm_are_compared_stage_by_stage() -> None:
    peft, imsm = (final_stage(config(SEQUENCE, f"method={method}")) for method in ("peft", "imsm"))
    other = final_stage(config("task_sequence=[mrpc,gsm8k,cola]", "method=imsm"))
    assert comparable_up_to_method(run_identity(peft), run_identity(imsm))
    assert not comparable_up_to_method(run_identity(peft), run_identity(other))
    single = final_stage(config("data=cola", "method=imsm"))
    assert not comparable_up_to_method(run_identity(peft), run_identity(single))


@pytest.mark.parametrize(
    ("overrides", "problem"),
    [
        (["task_sequence=[gsm8k]"], "needs at least two tasks; for one, use data=gsm8k"),
        (["task_sequence=[]"], "needs at least two tasks"),
        (["task_sequence=gsm8k"], "must be a list"),
        (["task_sequence=[gsm8k,mrpc,gsm8k]"], "gsm8k is named twice"),
        (["task_sequence=[gsm8k,mprc]"], "did you mean mrpc?"),
        (["task_sequence=[gsm8k,multirc]"], "multirc has no training split"),
        (["task_sequence=[gsm8k,jsonl]"], "use local data as the target of a single run"),
        (["task_sequence=[gsm8k,mrpc]", "run_dir=/tmp/x"], "has its own folder"),
        (["task_sequence=[gsm8k,mrpc]", "resume=required"], "use resume=auto"),
        (["task_sequence=[gsm8k,mrpc]", "data.metric=contain"], "is for a single target"),
        (["task_sequence=[gsm8k,mrpc]", "peft=loramoe_blc_replay"], "choose a method without replay"),
    ],
)
def test_an_invalid_sequence_is_an_error_of_one_line(overrides: list[str], problem: str) -> None:
    with pytest.raises(UserError, match="in the configuration") as caught:
        config(*overrides)
    (line,) = [line for line in str(caught.value).splitlines() if problem in line]
    assert "task_sequence=" in line


def test_rehearsal_in_a_sequence_excludes_the_tests_of_all_stages() -> None:
    sequence = ["task_sequence=[mrpc,gsm8k]", "rehearsal=self"]
    with pytest.raises(UserError, match=r"tests of gsm8k; set rehearsal\.exclude_tests=\[.*,gsm8k\]"):
        config(*sequence)
    run = config(*sequence, "rehearsal.exclude_tests=[webq,freebaseqa,multirc,mrpc,gsm8k]")
    assert [stage.data.name for stage in expand_stages(run)] == ["mrpc", "gsm8k"]


@pytest.mark.parametrize("target", ["data=cola", "data.max_new_tokens=4"])
def test_a_target_in_addition_to_a_sequence_is_an_error(target: str) -> None:
    overrides = ["task_sequence=[gsm8k,mrpc]", target, "data.max_train_examples=8"]
    (error,) = ConfigComposer().validate(overrides, sweep=False)
    assert error.startswith(f"{target}: ")
