"""Every option in conf/ makes a valid run, and the recipes have the paper's values."""

from __future__ import annotations

from pathlib import Path

import pytest

from imsm.utils.options import list_options
from imsm.utils.paths import conf_folder
from tests.helpers.config import config

NO_SECTION = {"metric", "sweep"}  # groups without a section in RunConfig
OPTIONS = sorted(p for p in conf_folder().glob("*/*.yaml") if p.parent.name not in NO_SECTION)
FORGETTING_ONLY = {"multirc", "freebaseqa"}


def test_every_yaml_is_an_option() -> None:
    groups = {path.name for path in conf_folder().iterdir() if path.is_dir()}
    assert {path.parent.name for path in OPTIONS} | NO_SECTION == groups
    others = sum(len(list_options(group)) for group in NO_SECTION)
    assert len(OPTIONS) + others + 1 == len(list(conf_folder().rglob("*.yaml")))


@pytest.mark.parametrize("path", OPTIONS, ids=lambda path: f"{path.parent.name}={path.stem}")
def test_an_option_makes_a_valid_run(path: Path, tmp_path: Path) -> None:
    for role in ("train", "test"):
        (tmp_path / f"{role}.jsonl").write_text('{"input": "a", "output": "b"}\n')
    overrides = [f"{path.parent.name}={path.stem}"]
    if path.stem == "jsonl":
        overrides.append(f"data.local_dir={tmp_path}")
    if path.stem == "generic":
        overrides.append("peft.peft_type=HRA" if path.parent.name == "peft" else "backbone.name_or_path=owner/name")
    if path.stem in FORGETTING_ONLY:
        overrides.append("method=original")
    run = config(*overrides)
    section = getattr(run, path.parent.name)
    # an option that adds to a recipe keeps its name, by which PEFT methods find their settings for it
    name = {"asft": "paper", "mini_asft": "mini"}.get(path.stem, path.stem)
    assert section.model_dump().get("name", name) == name


@pytest.mark.parametrize(
    ("peft", "optimizer", "rate", "batch", "schedule", "warmup"),
    [
        ("lora", "adamw", 3e-4, 16, "cosine", 0.1),
        ("adalora", "adamw", 2e-3, 16, "cosine", 0.1),
        ("dora", "adamw", 1e-4, 16, "linear", 0.1),
        ("ia3", "adafactor", 3e-3, 8, "linear", 0.06),
    ],
)
def test_trainer_paper_has_the_papers_recipe_for_both_methods(
    peft: str, optimizer: str, rate: float, batch: int, schedule: str, warmup: float
) -> None:
    recipe, other = (config("backbone=llama3", f"peft={peft}", f"method={name}").trainer for name in ("peft", "imsm"))
    assert recipe == other
    assert (recipe.optimizer, recipe.learning_rate, recipe.global_batch_size) == (optimizer, rate, batch)
    assert (recipe.lr_scheduler_type, recipe.warmup_ratio) == (schedule, warmup)
    assert (recipe.num_epochs, recipe.weight_decay, recipe.max_grad_norm) == (3, 0.0, 1.0)
    assert recipe.gate_learning_rate is None


def test_trainer_paper_code_differs_between_the_methods() -> None:
    peft, imsm = (
        config("backbone=llama3", "peft=ia3", "trainer=paper_code", f"method={name}") for name in ("peft", "imsm")
    )
    assert (peft.trainer.warmup_ratio, imsm.trainer.warmup_ratio) == (0.06, 0.03)
    assert (peft.trainer.max_grad_norm, imsm.trainer.max_grad_norm) == (1.0, None)
    assert imsm.trainer.gate_learning_rate == 1e-3
    assert (peft.trainer.optimizer, imsm.trainer.optimizer) == ("adafactor", "adamw")
    assert (imsm.gate.dropout, imsm.gate.output_dropout) == (0.0, 0.0)
    lora = config("backbone=llama3", "trainer=paper_code")
    assert (lora.trainer.weight_decay, lora.gate.dropout, lora.gate.output_dropout) == (0.01, 0.1, 0.1)


def test_trainer_paper_code_has_the_released_training_loop() -> None:
    run = config("backbone=llama3", "trainer=paper_code")
    recipe = run.trainer
    assert (run.seed, recipe.loss_reduction, recipe.carry_over) == (2024, "micro_batches", True)
    assert (recipe.warmup_rounding, recipe.truncation) == ("down", "right")
    assert (recipe.max_prompt_tokens, recipe.max_answer_tokens, recipe.micro_batch_size) == (512, 512, 4)
    assert config("backbone=llama3", "trainer=paper_code", "seed=3").seed == 3
    vanilla = config("backbone=llama3", "trainer=paper_code", "method=peft").trainer
    assert (vanilla.loss_reduction, vanilla.carry_over, vanilla.warmup_rounding) == ("tokens", False, "up")


@pytest.mark.parametrize(("peft", "rate"), [("lora", 0.1), ("adalora", 0.1), ("adalora_static", 0.1), ("dora", 0.05)])
def test_trainer_paper_code_sets_the_dropout_of_the_adapter(peft: str, rate: float) -> None:
    for method in ("imsm", "peft"):
        run = config("backbone=llama3", f"peft={peft}", "trainer=paper_code", f"method={method}")
        assert run.peft.arguments()["lora_dropout"] == rate


def test_the_miniature_sets_trainer_and_evaluation_unless_they_are_given() -> None:
    assert (config().trainer.name, config().evaluation.limit) == ("mini", 200)
    explicit = config("trainer=paper", "evaluation=target", "backbone=mini")
    assert (explicit.trainer.name, explicit.evaluation.tasks) == ("paper", ["target"])
    assert config("backbone=llama3").trainer.name == "paper"
    assert config("backbone=llama3").evaluation.limit is None


def test_target_roles_map_to_the_module_names_of_the_backbone() -> None:
    def modules(*overrides: str) -> list[str]:
        run = config(*overrides)
        return run.peft.target_modules(run.backbone)

    assert modules("backbone=llama3") == ["q_proj", "v_proj"]
    assert modules("backbone=qwen1_5") == ["q_proj"]
    assert modules("backbone=llama3", "peft=ia3") == ["k_proj", "v_proj", "down_proj"]
    assert modules("backbone=qwen1_5", "peft=ia3") == ["q_proj", "v_proj"]
    assert len(modules("backbone=mini")) == 7
    assert modules("backbone=mini", "peft.target_roles=[attention_key]") == ["k_proj"]
