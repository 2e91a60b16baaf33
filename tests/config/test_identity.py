"""What makes a run the same run, and what its folder is called."""

from __future__ import annotations

import json
import re

import pytest

from imsm.config.identity import comparable_up_to_method, identity_without_seed, run_identity, run_name
from imsm.config.schema import RunConfig
from imsm.config.stages import expand_stages
from imsm.utils.paths import conf_folder
from tests.helpers.config import config


def siblings(one: RunConfig, other: RunConfig) -> bool:
    return comparable_up_to_method(run_identity(one), run_identity(other))


DECIDING = [
    "backbone.dtype=bfloat16",
    "peft=ia3",
    "peft.r=4",
    "peft.target_roles=[attention_query]",
    "data=mrpc",
    "data.max_train_examples=7",
    "data.prompt_style=corrected",
    "gate=no_query",
    "gate.rank=4",
    "gate.pooling=last",
    "method=peft",
    "trainer.learning_rate=1e-4",
    "trainer.gate_learning_rate=1e-4",
    "trainer.num_epochs=9",
    "trainer.global_batch_size=4",
    "seed=1",
]
NOT_DECIDING = [
    "evaluation=target",
    "evaluation.limit=3",
    "evaluation.batch_size=3",
    "logger=wandb",
    "engine=single",
    "mode=evaluate",
    "data.metric=exact_match",
    "trainer.micro_batch_size=4",
    "trainer.save_minutes=1",
]


@pytest.mark.parametrize("override", DECIDING)
def test_what_decides_the_training_makes_another_run(override: str) -> None:
    assert run_identity(config(override)) != run_identity(config())
    assert run_name(config(override)) != run_name(config())


@pytest.mark.parametrize("override", NOT_DECIDING)
def test_what_does_not_decide_it_leaves_the_run_the_same(override: str) -> None:
    assert run_identity(config(override)) == run_identity(config())
    assert run_name(config(override)) == run_name(config())


def test_names() -> None:
    assert re.fullmatch(r"mini-lora-gsm8k-imsm-query-r8-s0-[0-9a-f]{8}", run_name(config()))
    name = run_name(config("gate=no_gate", "seed=3", "data=mrpc"))
    assert re.fullmatch(r"mini-lora-mrpc-imsm-mean-s3-[0-9a-f]{8}", name)
    name = run_name(config("method=peft", "peft=ia3", "backbone=llama3"))
    assert re.fullmatch(r"llama3-ia3-gsm8k-peft-s0-[0-9a-f]{8}", name)


def test_the_original_depends_on_the_backbone_alone() -> None:
    original = config("method=original")
    assert re.fullmatch(r"mini-original-[0-9a-f]{8}", run_name(original))
    same = config("method=original", "data=mrpc", "peft=ia3", "seed=4", "gate=no_gate")
    assert run_identity(same) == run_identity(original)
    assert run_identity(config("method=original", "backbone=llama3")) != run_identity(original)


def test_the_gate_counts_only_where_it_is_used() -> None:
    assert run_identity(config("method=peft", "gate=no_gate")) == run_identity(config("method=peft"))


def test_siblings_differ_in_nothing_but_the_method() -> None:
    imsm, peft, original = (config(f"method={name}") for name in ("imsm", "peft", "original"))
    assert siblings(imsm, peft)
    assert siblings(imsm, original) and siblings(original, peft)
    assert siblings(imsm, config("gate=no_query"))
    for override in ("seed=1", "peft.r=4", "data=mrpc", "trainer.learning_rate=1e-4"):
        assert not siblings(imsm, config("method=peft", override))
    assert not siblings(imsm, config("method=original", "backbone=llama3"))


def test_a_recipe_may_set_values_per_method() -> None:
    """The released code trains its arms differently; they are still the same recipe."""
    base = ["backbone=llama3", "trainer=paper_code"]
    imsm, peft = config(*base), config(*base, "method=peft")
    assert run_identity(imsm)["trainer"] != run_identity(peft)["trainer"]
    assert siblings(imsm, peft)
    assert not siblings(imsm, config(*base, "method=peft", "trainer.num_epochs=1"))
    assert not siblings(imsm, config("backbone=llama3", "method=peft"))


def test_where_there_is_a_dropout_the_micro_batch_decides() -> None:
    """Dropout masks are drawn per micro-batch."""
    micro = "trainer.micro_batch_size=4"
    for dropout in ("peft.lora_dropout=0.1", "gate.dropout=0.1"):
        assert run_identity(config(dropout, micro)) != run_identity(config(dropout))
        whole = "trainer.micro_batch_size=16"  # trainer=mini's batch in one piece
        assert run_identity(config(dropout, whole)) == run_identity(config(dropout))
        assert siblings(config(dropout), config(dropout, "method=peft"))
    peft = ["method=peft", "gate.dropout=0.1"]
    assert run_identity(config(*peft, micro)) == run_identity(config(*peft))
    dropped = ["method=peft", "peft.lora_dropout=0.1"]
    assert not siblings(config("peft.lora_dropout=0.1"), config(*dropped, micro))


def test_held_to_the_original_it_is_another_run() -> None:
    plain = run_identity(config())
    assert not {"kl_weight", "kl_mask_target"} & plain["trainer"].keys()  # finished runs stay
    for held in (["trainer.kl_beta=0.5"], ["trainer.kl_beta=0.5", "trainer.kl_mask_target=true"]):
        identity = run_identity(config(*held))
        assert identity != plain
        assert identity["trainer"]["kl_weight"] == 0.5
        assert siblings(config(*held), config("method=peft", *held))
        assert not siblings(config(*held), config("method=peft"))


def test_a_configuration_survives_its_file() -> None:
    run = config("gate.bias=1", "data.max_train_examples=5", "peft=adalora")
    again = RunConfig.from_dict(json.loads(json.dumps(run.to_dict())))
    assert again == run
    assert run_identity(again) == run_identity(run)
    assert again.gate.arguments() == run.gate.arguments()
    assert again.peft.arguments() == run.peft.arguments()


def test_the_names_in_a_configuration_are_looked_up() -> None:
    run = config("data=mrpc", "data.metric=f1")
    assert list(run.tasks) == ["mrpc", "webq", "freebaseqa", "multirc"]
    assert run.tasks["mrpc"].metrics == ["f1"]
    assert run.metrics["contain"] == "imsm.evaluation.metrics.contain"
    assert run.data.metrics == ["f1"]


def test_shipped_arguments_fit_what_they_are_for() -> None:
    """The gate's class is not imported by the check; this is where the two are held together."""
    import inspect

    from imsm.models.siamese.gate import Gate

    accepted = set(inspect.signature(Gate).parameters) - {"hidden_size"}
    gates = [config(f"gate={path.stem}").gate for path in (conf_folder() / "gate").glob("*.yaml")]
    assert {name for gate in gates for name in gate.arguments()} == accepted


def test_grouped_by_length_it_is_another_run() -> None:
    assert "group_by_length" not in run_identity(config())["trainer"]  # finished runs stay
    assert run_identity(config("trainer.group_by_length=true"))["trainer"]["group_by_length"]


def test_seeds_of_a_sequence_are_one_configuration() -> None:
    def last(*overrides: str) -> dict:
        return run_identity(expand_stages(config("task_sequence=[gsm8k,mrpc,cola]", *overrides))[-1])

    one, two, other = last("seed=0"), last("seed=1"), last("seed=1", "peft.r=4")
    assert one["previous_stage"]["after"]["seed"] == 0 and two["after"]["after"]["seed"] == 1
    assert identity_without_seed(one) == identity_without_seed(two) != identity_without_seed(other)
    # an earlier stage of another seed is another beginning
    assert identity_without_seed(one | {"after": two["previous_stage"]}) != identity_without_seed(one)
