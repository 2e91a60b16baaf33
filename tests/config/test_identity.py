"""Run identity, run names, and which runs are comparable."""

from __future__ import annotations

import inspect
import json
import re
from pathlib import Path

import pytest

from imsm.config.identity import comparable_up_to_method, identity_without_seed, run_identity, run_name
from imsm.config.schema import RunConfig
from imsm.config.stages import expand_stages
from imsm.models.siamese.gate import Gate
from imsm.utils.paths import conf_folder
from tests.helpers.config import config


def comparable(one: RunConfig, other: RunConfig) -> bool:
    return comparable_up_to_method(run_identity(one), run_identity(other))


AFFECTS_TRAINING = [
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
    "trainer.warmup_rounding=down",
    "trainer.truncation=right",
    "trainer.max_prompt_tokens=64",
    "trainer.max_answer_tokens=64",
    "gate.output_dropout=0.1",
    "seed=1",
]
DOES_NOT_AFFECT_TRAINING = [
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


@pytest.mark.parametrize("override", AFFECTS_TRAINING)
def test_a_setting_that_affects_training_changes_identity_and_name(override: str) -> None:
    assert run_identity(config(override)) != run_identity(config())
    assert run_name(config(override)) != run_name(config())


@pytest.mark.parametrize("override", DOES_NOT_AFFECT_TRAINING)
def test_other_settings_change_neither_identity_nor_name(override: str) -> None:
    assert run_identity(config(override)) == run_identity(config())
    assert run_name(config(override)) == run_name(config())


def test_default_identities_have_no_key_of_a_newer_option() -> None:
    """Otherwise runs that were finished before the option existed would have other names."""
    newer = {"loss_reduction", "carry_over", "warmup_rounding", "truncation", "max_prompt_tokens", "mixed_precision"}
    identity = run_identity(config())
    assert not (newer | {"max_answer_tokens", "micro_batch_size", "deterministic"}) & identity["trainer"].keys()
    assert "output_dropout" not in identity["gate"]


def test_quantization_is_part_of_the_backbone_if_set() -> None:
    plain, quantized = (config(f"backbone.quantization={each}") for each in ("null", "nf4"))
    assert run_identity(plain) == run_identity(config()) and run_name(plain) == run_name(config())
    assert run_identity(quantized)["backbone"] == {**run_identity(plain)["backbone"], "quantization": "nf4"}
    original = config("method=original", "backbone.quantization=nf4")
    assert run_identity(original)["backbone"] == run_identity(quantized)["backbone"]


def test_deterministic_algorithms_are_another_training() -> None:
    """They round differently on a GPU, so a checkpoint of one must not be resumed by the other."""
    assert run_identity(config("trainer.deterministic=true"))["trainer"]["deterministic"] is True
    assert run_name(config("trainer.deterministic=false")) == run_name(config())


def test_a_loss_per_micro_batch_depends_on_its_size() -> None:
    base = ["trainer.loss_reduction=micro_batches", "trainer.global_batch_size=16"]
    two, four = (config(*base, f"trainer.micro_batch_size={size}") for size in (2, 4))
    assert run_identity(two) != run_identity(four)
    assert run_identity(config(*base, "trainer.micro_batch_size=2", "trainer.carry_over=true")) != run_identity(two)


@pytest.mark.parametrize("peft", ["lora", "adalora", "adalora_static", "dora", "ia3"])
def test_methods_of_the_released_recipe_are_compared(peft: str) -> None:
    base = ["backbone=llama3", "trainer=paper_code", f"peft={peft}"]
    assert comparable(config(*base, "method=imsm"), config(*base, "method=peft"))


def test_names() -> None:
    assert re.fullmatch(r"mini-lora-gsm8k-imsm-query-r8-s0-[0-9a-f]{8}", run_name(config()))
    name = run_name(config("gate=no_gate", "seed=3", "data=mrpc"))
    assert re.fullmatch(r"mini-lora-mrpc-imsm-no_gate-s3-[0-9a-f]{8}", name)
    name = run_name(config("method=peft", "peft=ia3", "backbone=llama3"))
    assert re.fullmatch(r"llama3-ia3-gsm8k-peft-s0-[0-9a-f]{8}", name)


def test_the_originals_identity_is_its_backbone() -> None:
    original = config("method=original")
    assert re.fullmatch(r"mini-original-[0-9a-f]{8}", run_name(original))
    same = config("method=original", "data=mrpc", "peft=ia3", "seed=4", "gate=no_gate")
    assert run_identity(same) == run_identity(original)
    assert run_identity(config("method=original", "backbone=llama3")) != run_identity(original)


def test_the_gate_is_part_of_the_identity_of_imsm_only() -> None:
    assert run_identity(config("method=peft", "gate=no_gate")) == run_identity(config("method=peft"))


def test_comparable_runs_differ_in_the_method_only() -> None:
    imsm, peft, original = (config(f"method={name}") for name in ("imsm", "peft", "original"))
    assert comparable(imsm, peft)
    assert comparable(imsm, original) and comparable(original, peft)
    assert comparable(imsm, config("gate=no_query"))
    for override in ("seed=1", "peft.r=4", "data=mrpc", "trainer.learning_rate=1e-4"):
        assert not comparable(imsm, config("method=peft", override))
    assert not comparable(imsm, config("method=original", "backbone=llama3"))


def test_a_recipe_may_set_values_per_method() -> None:
    """The paper's code trains the methods with different values of one recipe."""
    base = ["backbone=llama3", "trainer=paper_code"]
    imsm, peft = config(*base), config(*base, "method=peft")
    assert run_identity(imsm)["trainer"] != run_identity(peft)["trainer"]
    assert comparable(imsm, peft)
    assert not comparable(imsm, config(*base, "method=peft", "trainer.num_epochs=1"))
    assert not comparable(imsm, config("backbone=llama3", "method=peft"))


def test_with_dropout_the_micro_batch_size_affects_training() -> None:
    """Dropout masks are drawn per micro-batch."""
    micro = "trainer.micro_batch_size=4"
    for dropout in ("peft.lora_dropout=0.1", "gate.dropout=0.1"):
        assert run_identity(config(dropout, micro)) != run_identity(config(dropout))
        full = "trainer.micro_batch_size=16"  # the global batch size of trainer=mini
        assert run_identity(config(dropout, full)) == run_identity(config(dropout))
        assert comparable(config(dropout), config(dropout, "method=peft"))
    peft = ["method=peft", "gate.dropout=0.1"]
    assert run_identity(config(*peft, micro)) == run_identity(config(*peft))
    dropped = ["method=peft", "peft.lora_dropout=0.1"]
    assert not comparable(config("peft.lora_dropout=0.1"), config(*dropped, micro))


def test_a_token_budget_affects_training_with_dropout_alone() -> None:
    tokens = ["trainer.micro_batch_tokens=512"]
    assert run_identity(config(*tokens, "trainer.packing=true")) == run_identity(config())
    dropout = "peft.lora_dropout=0.1"
    identities = [config(dropout), config(dropout, *tokens), config(dropout, *tokens, "trainer.packing=true")]
    assert len({json.dumps(run_identity(each)) for each in identities}) == 3


def test_the_kl_term_is_part_of_the_identity_if_set() -> None:
    plain = run_identity(config())
    assert not {"kl_beta", "kl_mask_target"} & plain["trainer"].keys()
    for kl in (["trainer.kl_beta=0.5"], ["trainer.kl_beta=0.5", "trainer.kl_mask_target=true"]):
        identity = run_identity(config(*kl))
        assert identity != plain
        assert identity["trainer"]["kl_beta"] == 0.5
        assert comparable(config(*kl), config("method=peft", *kl))
        assert not comparable(config(*kl), config("method=peft"))


def test_from_dict_inverts_to_dict() -> None:
    run = config("gate.bias=1", "data.max_train_examples=5", "peft=adalora")
    again = RunConfig.from_dict(json.loads(json.dumps(run.to_dict())))
    assert again == run
    assert run_identity(again) == run_identity(run)
    assert again.gate.arguments() == run.gate.arguments()
    assert again.peft.arguments() == run.peft.arguments()


def test_tasks_and_metrics_are_looked_up() -> None:
    run = config("data=mrpc", "data.metric=f1")
    assert list(run.tasks) == ["mrpc", "webq", "freebaseqa", "multirc"]
    assert run.tasks["mrpc"].metrics == ["f1"]
    assert run.metrics["contain"] == "imsm.evaluation.metrics.contain"
    assert run.data.metrics == ["f1"]


def test_the_schema_of_the_gate_has_the_arguments_of_its_class() -> None:
    """Validation does not import the gate's class, so the schema repeats its arguments."""
    accepted = set(inspect.signature(Gate).parameters) - {"hidden_size"}
    names = [path.stem for path in (conf_folder() / "gate").glob("*.yaml")]
    gates = [config(f"gate={name}", "trainer=paper_code").gate for name in names]
    assert {name for gate in gates for name in gate.arguments()} == accepted


def test_group_by_length_is_part_of_the_identity_if_set() -> None:
    assert "group_by_length" not in run_identity(config())["trainer"]
    assert run_identity(config("trainer.group_by_length=true"))["trainer"]["group_by_length"]


def test_identities_without_seed_agree_for_sequences_of_other_seeds() -> None:
    def last(*overrides: str) -> dict:
        return run_identity(expand_stages(config("task_sequence=[gsm8k,mrpc,cola]", *overrides))[-1])

    one, two, other = last("seed=0"), last("seed=1"), last("seed=1", "peft.r=4")
    assert (
        one["previous_stage"]["previous_stage"]["seed"] == 0 and two["previous_stage"]["previous_stage"]["seed"] == 1
    )
    assert identity_without_seed(one) == identity_without_seed(two) != identity_without_seed(other)
    # a previous stage of another seed makes another configuration
    assert identity_without_seed(one | {"previous_stage": two["previous_stage"]}) != identity_without_seed(one)


def test_the_share_of_test_examples_is_part_of_the_identity_only_if_set(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_text('{"input": "a", "output": "b"}\n')
    own = ("backbone=llama3", "data=jsonl", f"data.local_dir={tmp_path}", "evaluation.tasks=[target]")
    tenth, fifth = (config(*own, f"data.test_share={share}") for share in (0.1, 0.2))
    assert run_identity(tenth)["data"]["source"]["test_share"] == 0.1
    assert run_name(tenth) != run_name(fifth)
    (tmp_path / "test.jsonl").write_text('{"input": "a", "output": "b"}\n')
    assert run_identity(config(*own, "data.max_train_examples=2"))["data"]["source"] == {
        "kind": "local", "path": str(tmp_path),
    }  # fmt: skip


def test_token_weights_are_part_of_the_identity_if_set() -> None:
    plain = run_identity(config())
    assert "token_weight" not in plain["trainer"]
    assert run_identity(config("trainer.token_weight=none")) == plain
    assert run_identity(config("trainer.token_weight=dft"))["trainer"] == plain["trainer"] | {"token_weight": "dft"}


@pytest.mark.parametrize(("recipe", "base"), [("asft", "paper"), ("mini_asft", "mini")])
def test_asft_is_its_base_with_dft_and_kl(recipe: str, base: str) -> None:
    parts = [f"trainer={base}", "trainer.token_weight=dft", "trainer.kl_beta=0.1"]
    assert run_identity(config(f"trainer={recipe}")) == run_identity(config(*parts))


def test_watched_items_belong_to_the_identity_only_if_they_select_the_checkpoint() -> None:
    plain = config()
    assert run_identity(config("trainer.watch_items=8", "evaluation.checkpoints=true", "trainer.save_steps=2")) == (
        run_identity(plain)
    )
    chosen = ["trainer.metric_for_best_model=retention", "trainer.min_target=60", "trainer.watch_items=8"]
    chosen += ["trainer.validation_size=9", "trainer.save_steps=5"]
    recipe = run_identity(config(*chosen))["trainer"]
    assert {key: recipe[key] for key in ("min_target", "watch_items", "save_steps")} == {
        "min_target": 60,
        "watch_items": 8,
        "save_steps": 5,
    }
    assert recipe["watch_metrics"] == {
        "freebaseqa": "contain",
        "gsm8k": "gsm8k_accuracy",
        "mrpc": "accuracy",
        "multirc": "accuracy",
        "webq": "contain",
    }
    assert run_identity(config(*chosen, "evaluation.tasks=[target,webq]"))["trainer"] != recipe
    assert comparable(config(*chosen), config("method=peft", *chosen))
