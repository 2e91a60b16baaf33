"""A sequence is a chain of ordinary runs: their names, what they share, what is refused."""

from __future__ import annotations

from itertools import pairwise

import pytest

from imsm.chain import last_stage, stages_of
from imsm.config import RunConfig
from imsm.errors import UserError
from imsm.folders import conf_folder
from imsm.identity import differs_only_in_method, run_identity, run_name
from imsm.preflight import Preflight
from tests.composed import config

SEQUENCE = "sequence=[gsm8k,mrpc,cola]"


def names(*overrides: str) -> list[str]:
    return [run_name(stage) for stage in stages_of(config(*overrides))]


def test_the_first_stage_is_the_ordinary_run_of_its_task() -> None:
    judged = "evaluation.tasks=[mrpc,cola,webq,freebaseqa,multirc]"
    first, _ = stages_of(config("sequence=[mrpc,cola]", "data.train_limit=40"))
    assert first.to_dict() == config("data=mrpc", judged, "data.train_limit=40").to_dict()
    assert "after" not in run_identity(first)


def test_a_later_stage_is_its_task_after_the_one_before() -> None:
    stages = stages_of(config(SEQUENCE, "method=peft"))
    assert [stage.data.name for stage in stages] == ["gsm8k", "mrpc", "cola"]
    assert [run_name(stage).rpartition("-")[0] for stage in stages] == [
        "mini-lora-gsm8k-peft-s0",
        "mini-lora-gsm8k_mrpc-peft-s0",
        "mini-lora-gsm8k_mrpc_cola-peft-s0",
    ]
    for before, stage in pairwise(stages):
        assert stage.after is not None
        assert stage.after.run == run_name(before)
        alone = config(f"data={stage.data.name}", "method=peft")
        identity = run_identity(stage)
        assert identity.pop("after") == run_identity(before)
        assert identity == run_identity(alone)
    assert all(list(stage.tasks)[:3] == ["gsm8k", "mrpc", "cola"] for stage in stages)


def test_a_common_beginning_is_shared_and_any_other_is_not() -> None:
    three, two = names(SEQUENCE), names("sequence=[gsm8k,mrpc]")
    assert three[:2] == two
    assert not set(names("sequence=[mrpc,gsm8k]")) & set(two)
    other = names("sequence=[gsm8k,mrpc]", "seed=1")
    assert not set(other) & set(two)


def test_a_stage_survives_being_saved() -> None:
    stage = last_stage(config(SEQUENCE))
    again = RunConfig.from_dict(stage.to_dict())
    assert run_identity(again) == run_identity(stage)
    assert run_name(again) == run_name(stage)


def test_a_run_without_a_sequence_keeps_its_name() -> None:
    chosen = config("data=mrpc")
    assert stages_of(chosen) == [chosen]
    assert not {"after", "sequence"} & set(run_identity(chosen))


def test_nothing_is_chained_where_nothing_is_trained() -> None:
    (alone,) = stages_of(config("sequence=[gsm8k,mrpc]", "method=original"))
    assert list(alone.tasks)[:2] == ["gsm8k", "mrpc"]
    assert run_name(alone) == run_name(config("method=original"))


def test_peft_and_imsm_are_compared_stage_by_stage() -> None:
    peft, imsm = (last_stage(config(SEQUENCE, f"method={arm}")) for arm in ("peft", "imsm"))
    other = last_stage(config("sequence=[mrpc,gsm8k,cola]", "method=imsm"))
    assert differs_only_in_method(run_identity(peft), run_identity(imsm))
    assert not differs_only_in_method(run_identity(peft), run_identity(other))
    longer = last_stage(config("data=cola", "method=imsm"))
    assert not differs_only_in_method(run_identity(peft), run_identity(longer))


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["sequence=[gsm8k]"], "needs at least two tasks; for one, data=gsm8k"),
        (["sequence=[]"], "needs at least two tasks"),
        (["sequence=gsm8k"], "must be a list"),
        (["sequence=[gsm8k,mrpc,gsm8k]"], "gsm8k is named twice"),
        (["sequence=[gsm8k,mprc]"], "did you mean mrpc?"),
        (["sequence=[gsm8k,multirc]"], "multirc has no split to train on"),
        (["sequence=[gsm8k,jsonl]"], "one's own data can be the target of a single run only"),
        (["sequence=[gsm8k,mrpc]", "folder=/tmp/x"], "has a folder of its own"),
        (["sequence=[gsm8k,mrpc]", "resume=must"], "use resume=auto"),
        (["sequence=[gsm8k,mrpc]", "data.metric=contain"], "is for a single target"),
        (["sequence=[gsm8k,mrpc]", "peft=loramoe_blc_replay"], "choose a method without replay"),
    ],
)
def test_what_makes_no_sequence_is_refused_in_a_line(overrides: list[str], said: str) -> None:
    with pytest.raises(UserError, match=r"problem") as caught:
        config(*overrides)
    (line,) = [line for line in str(caught.value).splitlines() if said in line]
    assert "sequence=" in line


def test_a_target_beside_a_sequence_is_refused() -> None:
    problems = Preflight(conf=conf_folder()).problems(
        ["sequence=[gsm8k,mrpc]", "data=cola", "data.max_new_tokens=4", "data.train_limit=8"],
        sweep=False,
    )
    assert [line.partition(":")[0] for line in problems] == ["data=cola", "data.max_new_tokens=4"]
