"""A sequence is a chain of ordinary runs: their names, what they share, what is refused."""

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
    judged = "evaluation.tasks=[mrpc,cola,webq,freebaseqa,multirc]"
    first, _ = expand_stages(config("task_sequence=[mrpc,cola]", "data.max_train_examples=40"))
    assert first.to_dict() == config("data=mrpc", judged, "data.max_train_examples=40").to_dict()
    assert "after" not in run_identity(first)


def test_a_later_stage_is_its_task_after_the_one_before() -> None:
    stages = expand_stages(config(SEQUENCE, "method=peft"))
    assert [stage.data.name for stage in stages] == ["gsm8k", "mrpc", "cola"]
    assert [run_name(stage).rpartition("-")[0] for stage in stages] == [
        "mini-lora-gsm8k-peft-s0",
        "mini-lora-gsm8k_mrpc-peft-s0",
        "mini-lora-gsm8k_mrpc_cola-peft-s0",
    ]
    for before, stage in pairwise(stages):
        assert stage.previous_stage is not None
        assert stage.previous_stage.run == run_name(before)
        alone = config(f"data={stage.data.name}", "method=peft")
        identity = run_identity(stage)
        assert identity.pop("after") == run_identity(before)
        assert identity == run_identity(alone)
    assert all(list(stage.tasks)[:3] == ["gsm8k", "mrpc", "cola"] for stage in stages)


def test_a_common_beginning_is_shared_and_any_other_is_not() -> None:
    three, two = names(SEQUENCE), names("task_sequence=[gsm8k,mrpc]")
    assert three[:2] == two
    assert not set(names("task_sequence=[mrpc,gsm8k]")) & set(two)
    other = names("task_sequence=[gsm8k,mrpc]", "seed=1")
    assert not set(other) & set(two)


def test_a_stage_survives_being_saved() -> None:
    stage = final_stage(config(SEQUENCE))
    again = RunConfig.from_dict(stage.to_dict())
    assert run_identity(again) == run_identity(stage)
    assert run_name(again) == run_name(stage)


def test_a_run_without_a_sequence_keeps_its_name() -> None:
    chosen = config("data=mrpc")
    assert expand_stages(chosen) == [chosen]
    assert not {"after", "sequence"} & set(run_identity(chosen))


def test_nothing_is_chained_where_nothing_is_trained() -> None:
    (alone,) = expand_stages(config("task_sequence=[gsm8k,mrpc]", "method=original"))
    assert list(alone.tasks)[:2] == ["gsm8k", "mrpc"]
    assert run_name(alone) == run_name(config("method=original"))


def test_peft_and_imsm_are_compared_stage_by_stage() -> None:
    peft, imsm = (final_stage(config(SEQUENCE, f"method={arm}")) for arm in ("peft", "imsm"))
    other = final_stage(config("task_sequence=[mrpc,gsm8k,cola]", "method=imsm"))
    assert comparable_up_to_method(run_identity(peft), run_identity(imsm))
    assert not comparable_up_to_method(run_identity(peft), run_identity(other))
    longer = final_stage(config("data=cola", "method=imsm"))
    assert not comparable_up_to_method(run_identity(peft), run_identity(longer))


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["task_sequence=[gsm8k]"], "needs at least two tasks; for one, data=gsm8k"),
        (["task_sequence=[]"], "needs at least two tasks"),
        (["task_sequence=gsm8k"], "must be a list"),
        (["task_sequence=[gsm8k,mrpc,gsm8k]"], "gsm8k is named twice"),
        (["task_sequence=[gsm8k,mprc]"], "did you mean mrpc?"),
        (["task_sequence=[gsm8k,multirc]"], "multirc has no split to train on"),
        (["task_sequence=[gsm8k,jsonl]"], "one's own data can be the target of a single run only"),
        (["task_sequence=[gsm8k,mrpc]", "run_dir=/tmp/x"], "has a folder of its own"),
        (["task_sequence=[gsm8k,mrpc]", "resume=required"], "use resume=auto"),
        (["task_sequence=[gsm8k,mrpc]", "data.metric=contain"], "is for a single target"),
        (["task_sequence=[gsm8k,mrpc]", "peft=loramoe_blc_replay"], "choose a method without replay"),
    ],
)
def test_what_makes_no_sequence_is_refused_in_a_line(overrides: list[str], said: str) -> None:
    with pytest.raises(UserError, match=r"problem") as caught:
        config(*overrides)
    (line,) = [line for line in str(caught.value).splitlines() if said in line]
    assert "task_sequence=" in line


def test_a_target_beside_a_sequence_is_refused() -> None:
    errors = ConfigComposer().validate(
        ["task_sequence=[gsm8k,mrpc]", "data=cola", "data.max_new_tokens=4", "data.max_train_examples=8"], sweep=False
    )
    assert [line.partition(":")[0] for line in errors] == ["data=cola", "data.max_new_tokens=4"]
