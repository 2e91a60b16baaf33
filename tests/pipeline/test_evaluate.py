"""Which tasks count as trained on, and which metrics score them."""

from __future__ import annotations

from imsm.config.identity import run_identity
from imsm.config.schema import FrozenAdapterConfig
from imsm.config.stages import expand_stages
from imsm.pipeline.evaluate import learned_tasks
from tests.helpers.config import config


def test_replay_tasks_are_learned_but_excluded_tests_are_not() -> None:
    replaying = config("peft=loramoe_blc_replay", "data=gsm8k")
    assert set(replaying.replay_tasks) > {"webq"}
    assert learned_tasks(replaying) == ["gsm8k", "webq"]
    assert learned_tasks(config("peft=lora", "data=gsm8k")) == ["gsm8k"]


def test_tasks_of_parent_runs_are_learned_with_their_replay() -> None:
    *_, last = expand_stages(config("peft=lora", "task_sequence=[cola,mrpc]"))
    assert learned_tasks(last) == ["cola", "mrpc"]
    replaying = config("peft=loramoe_blc_replay", "data=gsm8k")
    frozen = FrozenAdapterConfig(identity=run_identity(replaying), tasks=["gsm8k"])
    child = config("peft=loramoe_blc_replay", "data=gsm8k").model_copy(update={"frozen_run": frozen})
    assert set(learned_tasks(child)) == {"gsm8k", "webq"}
