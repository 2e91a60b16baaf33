"""Evaluation examples that are also training examples."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from imsm.config.identity import parent_trainings, run_identity
from imsm.config.schema import FrozenAdapterConfig, RunConfig
from imsm.config.stages import expand_stages
from imsm.data.example import Example
from imsm.data.sources import DataSource, load_examples
from imsm.evaluation.contamination import find_contamination
from imsm.pipeline.data import all_training_examples, check_parent_data, run_examples, training_fingerprint
from imsm.utils.errors import UserError
from tests.helpers.config import config


def example(name: str, prompt: str) -> Example:
    return Example(id=name, prompt=prompt, golds=("yes",))


def test_prompts_are_compared_without_case_and_whitespace() -> None:
    learned = [example("a", "Is it  red?\nOutput:"), example("b", "Is it blue?")]
    test = [example("1", "is it red? output:"), example("2", "Is it green?"), example("3", "x")]
    assert find_contamination(test, learned) == {"count": 1, "ids": ["1"]}
    assert find_contamination(test, []) == {"count": 0, "ids": []}


def test_at_most_twenty_ids_are_listed() -> None:
    rows = [example(str(number), f"question {number}") for number in range(30)]
    found = find_contamination(rows, rows)
    assert found["count"] == 30 and len(found["ids"]) == 20


def ids(config: RunConfig) -> list[str]:
    return [example.id for example in all_training_examples(config)]


def frozen(source: RunConfig, *overrides: str) -> RunConfig:
    """A gate on the adapter of another run."""
    chosen = config(*overrides)
    run = FrozenAdapterConfig(tasks=[source.data.name], identity=run_identity(source))
    return chosen.model_copy(update={"frozen_run": run})


def test_examples_of_previous_stages_count() -> None:
    stages = expand_stages(config("task_sequence=[mrpc,cola,gsm8k]", "data.max_train_examples=8"))
    own = [[example.id for example in run_examples(stage)] for stage in stages]
    assert [len(each) for each in own] == [8, 8, 8]
    assert [ids(stage) for stage in stages] == [own[0], own[0] + own[1], own[0] + own[1] + own[2]]
    # the fingerprint of a run's own data does not change
    alone = config("data=cola", "data.max_train_examples=8")
    assert training_fingerprint(stages[1]) == training_fingerprint(alone)


def test_examples_of_a_frozen_adapter_count() -> None:
    *_, last = expand_stages(config("task_sequence=[mrpc,cola]", "data.max_train_examples=8"))
    run = frozen(last, "data=gsm8k", "data.max_train_examples=4")
    assert ids(run) == ids(last) + [example.id for example in run_examples(run)]
    assert [each["data"]["name"] for each in parent_trainings(run)] == ["mrpc", "cola"]
    assert RunConfig.from_dict(run.to_dict()) == run  # survives `result.json`


def test_replayed_examples_count() -> None:
    replay = ("peft=loramoe_blc_replay", "data.max_train_examples=100")
    source = config("data=gsm8k", *replay)
    before = ids(source)
    assert len(before) == 110 and before[100].startswith("webq")
    run = frozen(source, "data=cola", *replay)
    assert ids(run)[:110] == before and len(ids(run)) == 220


def test_missing_data_of_the_parent_run_are_rejected_before_training(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_text('{"input": "a", "output": "b"}\n')
    (tmp_path / "test.jsonl").write_text('{"input": "a", "output": "b"}\n')
    own = ("data=jsonl", "data.metric=contain", f"data.local_dir={tmp_path}")
    run = frozen(config(*own), "data=cola", "data.max_train_examples=4")
    check_parent_data(run)
    assert len(ids(run)) == 5
    (tmp_path / "train.jsonl").unlink()
    with pytest.raises(UserError, match="training data of a parent run is not available"):
        check_parent_data(run)


@pytest.mark.skipif("IMSM_TEST_HUB" not in os.environ, reason="needs the datasets' mirror")
@pytest.mark.parametrize("choice", ["data=cola", "task_sequence=[cola,mrpc]"])
def test_cola_has_sixteen_test_rows_in_its_training_split(choice: str) -> None:
    mirror = Path(os.environ["IMSM_TEST_HUB"])
    chosen = config("backbone=llama3", choice, f"data.mirror_dir={mirror}", "evaluation.tasks=[cola]")
    for stage in expand_stages(chosen):
        test = load_examples(
            stage.tasks["cola"],
            "test",
            source=DataSource(kind="mirror", path=str(mirror)),
            prompt_style="paper",
            limit=None,
        )
        found = find_contamination(test, all_training_examples(stage))
        assert found["count"] == 16 and len(found["ids"]) == 16
