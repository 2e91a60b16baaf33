"""Composing a command line: names, syntax, sweeps, and all value errors at once. Nothing is run."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hydra.core.config_store import ConfigStore

from imsm.config import compose
from imsm.config.compose import ConfigComposer
from imsm.data.sources import MINIATURE
from imsm.utils.errors import UserError
from imsm.utils.paths import conf_folder

ROW = '{"input": "a", "output": "b"}\n'


@pytest.fixture(scope="module")
def composer() -> ConfigComposer:
    return ConfigComposer()


VALID = [
    [],
    ["backbone=llama3", "peft=lora", "data=gsm8k"],
    ["backbone=llama3", "backbone.name_or_path=owner/model", "data.source=miniature"],
    ["backbone=gemma3_270m", "data=mrpc", "data.max_train_examples=512", "trainer.num_epochs=2"],
    ["gate=no_gate", "method=imsm", "seed=3"],
    ["method=original", "data=multirc"],
    ["backbone=llama3", "+backbone.architecture.sliding_window=8"],
    ["++gate.rank=4"],
    ["evaluation.tasks=[target,webq]", "evaluation.limit=30"],
    ["hydra.verbose=true"],
    ["data.prompt_style=corrected", "trainer.learning_rate=1e-2", "trainer.max_grad_norm=null"],
    ["peft=prefix_tuning"],
    ["peft=prompt_tuning", "trainer.gradient_checkpointing=true"],
    ["trainer.gradient_checkpointing=true"],
]


@pytest.mark.parametrize("overrides", VALID, ids=" ".join)
def test_valid_overrides_have_no_errors(composer: ConfigComposer, overrides: list[str]) -> None:
    assert composer.validate(overrides, sweep=False) == []


# override -> parts of its one error: the key, the allowed values, the nearest name
COMPOSITION_ERRORS = {
    "peft=lroa": ["(adalora, ", "did you mean peft=lora?"],
    "peft=null": ["(adalora, "],
    "+peft=dora": ["write peft=dora without a +"],
    "~peft": ["one option of peft (adalora, "],
    "data=[gsm8k,mrpc]": ["one option of data (cola, "],
    "metric=accuracy": ["did you mean data.metric=accuracy?"],
    "gate.rnak=8": ["did you mean gate.rank=8?"],
    "+gate.rnak=8": ["did you mean gate.rank=8?"],
    "++gate.rnak=8": ["did you mean gate.rank=8?"],
    "++peft.rr=8": ["did you mean peft.r=8?"],
    "+gate.rank=4": ["remove the +"],
    "+epochs=4": ["no such key"],
    "rank=4": ["did you mean gate.rank=4?"],
    "bakbone=llama3": ["did you mean backbone=llama3?"],
    "backbone.module_names.experts=[up]": ["+backbone.module_names.experts=[up] adds it"],
    "seed.value=8": ["seed has no keys"],
    "~trainer.optimiser": ["no such key"],
    "hydra.verbos=true": ["hydra.verbos"],
    "lora": ["key=value", "did you mean peft=lora?"],
    "zzzz": ["key=value", "--help"],
    "data.local_dir=[a": ["quote"],
    "gate.rank=4,8": ["add -m"],
    "sweep=slurm": ["add -m"],
}


@pytest.mark.parametrize("override", COMPOSITION_ERRORS)
def test_a_composition_error_names_the_override_and_the_fix(composer: ConfigComposer, override: str) -> None:
    (line,) = composer.validate([override], sweep=False)
    assert override.lstrip("+").partition("=")[0] in line and "\n" not in line
    for part in COMPOSITION_ERRORS[override]:
        assert part in line


def test_conflicting_options_are_an_error(composer: ConfigComposer) -> None:
    (line,) = composer.validate(["peft=lora", "peft=ia3"], sweep=False)
    assert "peft=ia3" in line and "peft=lora" in line


# override -> a part of one of its errors besides the key; "" where the key is enough
VALUE_ERRORS = {
    "~trainer.optimizer": "adamw or adafactor",
    "gate.rank=0": "at least 1",
    "gate.rank=2.5": "",
    'gate.rank="8"': "or null",
    "peft.r=0": "at least 1",
    "peft.lora_dropout=1": "less than 1",
    "peft.r=true": "",
    "trainer.gradient_checkpointing=1": "true or false",
    "trainer.learning_rate=nan": "",
    "trainer.warmup_ratio=1.5": "less than 1",
    "trainer.kl_beta=0": "greater than 0",
    "trainer.kl_mask_target=true": "trainer.kl_beta",
    "trainer.packing=true": "set trainer.micro_batch_tokens=4096",
    "trainer.micro_batch_tokens=0": "at least 1",
    "trainer.token_weight=dtf": "did you mean trainer.token_weight=dft?",
    "trainer.min_target=101": "at most 100",
    "trainer.min_target=60": "set trainer.metric_for_best_model=retention",
    "trainer.metric_for_best_model=retention": "set trainer.watch_items=32",
    "evaluation.checkpoints=true": "set trainer.save_steps",
    "trainer.optimizer=adam": "did you mean trainer.optimizer=adamw?",
    "gate.inputs=[tunde]": "did you mean tuned?",
    "evaluation.tasks=webq": "list",
    "backbone.module_names=null": "mapping",
    "seed=-1": "at least 0",
    "mode=evalute": "did you mean mode=evaluate?",
    "logger.mode=of": "auto, online or offline",
    "engine.device=gpu": "auto, cpu or cuda",
    "data.stop=\"'['\"": "regular expression",
    "trainer.learning_rate=${peft.recipes.paper.rate}": "",
    "trainer.micro_batch_size=3": "trainer.micro_batch_size=2",
    "gate.rank=null": "",
    "gate.trainable=false": "gate=no_gate",
    "method.trainable=false": "method.trainable=true",
    "data=multirc": "method=original",
    "data=jsonl": "data.local_dir=",
    "data.source=mirror": "data.mirror_dir=",
    "data.source=hub": "backbone=gemma3_270m",
    "peft.target_roles=[attention_qury]": "did you mean attention_query?",
    "peft._target_=peft.LoraConfg": "did you mean peft.LoraConfig?",
    "peft._target_=imsm.models.adapters.nothing.lora": "--config-dir",
    "data.module=imsm.data.tasks.nothing": "",
    "evaluation.tasks=[webqq]": "did you mean webq?",
    "evaluation.tasks=[webq,webq]": "webq",
    "data.metric=acuracy": "did you mean accuracy?",
    "backbone.local_resolver=os.system": "--config-dir",
    "backbone.local_resolver=imsm.nowhere.f": "",
    "backbone.local_resolver=imsm.models.backbones.gemma3_gguf.local_pat": "did you mean",
    "data.chat_template=true": "llama3_1_instruct",
    "resume=atuo": "did you mean resume=auto?",
    "data.mirror_dir=/no/such/place": "",
    "data.local_dir=/no/such/place": "",
    "backbone.name_or_path=/no/such/place": "",
    "backbone.name_or_path='not an id'": "Hub id",
}


@pytest.mark.parametrize("override", VALUE_ERRORS)
def test_a_value_error_names_the_key_and_what_is_allowed(composer: ConfigComposer, override: str) -> None:
    errors = composer.validate([override], sweep=False)
    key = override.lstrip("~").partition("=")[0].rpartition(".")[2]
    assert any(key in line for line in errors), errors
    assert any(VALUE_ERRORS[override] in line for line in errors), errors
    assert all("\n" not in line for line in errors)


def test_all_value_errors_are_reported_at_once(composer: ConfigComposer) -> None:
    overrides = [
        "gate=no_gate",
        "gate.rank=8",  # only a valid gate section can report that it has no rank
        "trainer.optimizer=adam",
        "trainer.micro_batch_size=3",  # reported although another key makes its section invalid
        "data.mirror_dir=/no/such/place",
        "data.max_train_examples=0",
        "evaluation.tasks=[targte]",
    ]
    errors = composer.validate(overrides, sweep=False)
    for override in overrides[1:]:
        key = override.split("=")[0]
        assert any(key in line for line in errors), (key, errors)
    assert len(errors) == len(set(errors))


def test_an_unknown_option_is_the_only_error(composer: ConfigComposer) -> None:
    (line,) = composer.validate(["peft=adalra", "peft.init_r=4"], sweep=False)
    assert "did you mean peft=adalora?" in line


ADALORA = [
    (["peft.target_r=20"], "peft.target_r=20"),
    (["peft.tinit_ratio=0.7", "peft.tfinal_ratio=0.3"], "peft.tinit_ratio"),
]


@pytest.mark.parametrize(("overrides", "key"), ADALORA, ids=["ranks", "ratios"])
def test_arguments_of_a_method_are_checked_together(composer: ConfigComposer, overrides: list[str], key: str) -> None:
    (line,) = composer.validate(["peft=adalora", *overrides], sweep=False)
    assert key in line


def test_prefix_tuning_excludes_gradient_checkpointing(composer: ConfigComposer) -> None:
    (line,) = composer.validate(["peft=prefix_tuning", "trainer.gradient_checkpointing=true"], sweep=False)
    assert "trainer.gradient_checkpointing=false" in line


def test_packing_excludes_a_balance_over_rows(composer: ConfigComposer) -> None:
    packing = ["trainer.packing=true", "trainer.micro_batch_tokens=64"]
    (line,) = composer.validate(["peft=loramoe_blc", *packing], sweep=False)
    assert "set peft.blc_weight=0" in line
    assert composer.validate(["peft=loramoe", *packing], sweep=False) == []


def test_a_task_sequence_excludes_settings_of_one_dataset(composer: ConfigComposer) -> None:
    sequence = "task_sequence=[gsm8k,mrpc]"
    for override in ("data=mrpc", "data.max_new_tokens=3"):
        (line,) = composer.validate([sequence, override], sweep=False)
        assert override in line and sequence in line
    assert composer.validate([sequence, "data.max_train_examples=8"], sweep=False) == []


# Sweeps


def test_combinations_are_in_the_order_of_hydras_basic_sweeper(composer: ConfigComposer) -> None:
    spec = composer.sweep_spec(["gate.rank=4,8", "peft=lora", "seed=range(0,2)", "hydra.verbose=true"], sweep=True)
    assert spec.jobs == [
        ["gate.rank=4", "peft=lora", "seed=0"],
        ["gate.rank=4", "peft=lora", "seed=1"],
        ["gate.rank=8", "peft=lora", "seed=0"],
        ["gate.rank=8", "peft=lora", "seed=1"],
    ]
    assert (spec.launcher, spec.sweeper, spec.keeps_folder) == ("basic", "basic", False)
    assert composer.sweep_spec(["hydra.mode=MULTIRUN", "seed=0,1"], sweep=False).several


def test_jobs_may_not_share_a_run_dir(composer: ConfigComposer) -> None:
    (line,) = composer.validate(["method=peft,imsm", "run_dir=x"], sweep=True)
    assert line.startswith("run_dir=x: 2 jobs")
    assert composer.validate(["method=peft", "run_dir=x,y"], sweep=True) == []
    assert composer.validate(["method=peft,imsm", "run_dir=null"], sweep=True) == []


@pytest.mark.parametrize("override", ["evaluation.protocol=strict,paper_code", "evaluation=all,mini"])
def test_jobs_may_not_differ_in_evaluation_only(composer: ConfigComposer, override: str) -> None:
    (line,) = composer.validate(["seed=0,1", override], sweep=True)
    assert line.startswith(f"{override}: ") and "mode=evaluate" in line
    assert composer.validate(["seed=0,1", "evaluation.protocol=paper_code"], sweep=True) == []


def test_every_job_of_a_sweep_is_validated(composer: ConfigComposer) -> None:
    errors = composer.validate(["gate.rank=8,0", "peft=lora,lroa", "seed=range(0,3)"], sweep=True)
    assert len(errors) == 2
    assert composer.validate(["gate.rank=4,8", "peft=glob(*,exclude=generic)"], sweep=True) == []
    (line,) = composer.validate(["gate=query,no_gate", "gate.rank=8"], sweep=True)
    assert "gate=no_gate" in line
    (line,) = composer.validate(["peft=glob(zzz*)"], sweep=True)
    assert "no jobs" in line


SWEEP_ERRORS = [
    (["sweep=slurm,optuna"], "sweep=slurm,optuna: must be one option of sweep"),
    (["sweep=slrum"], "did you mean sweep=slurm?"),
    (["sweep=slurm", "hydra.launcher.partitio=x"], "hydra.launcher.partitio"),
    (["sweep=optuna", "trainer.learning_rate=interval(0.1,3)"], "trainer.learning_rate=3.0"),
    (["sweep=optuna", "gate.rank=choice(0,4)"], "gate.rank=0"),
    (["trainer.learning_rate=interval(0.1,0.2)"], "sweep=optuna"),
]


@pytest.mark.parametrize(("overrides", "part"), SWEEP_ERRORS)
def test_an_impossible_sweep_is_an_error(composer: ConfigComposer, overrides: list[str], part: str) -> None:
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    (line,) = composer.validate(overrides, sweep=True)
    assert part in line and "\n" not in line


@pytest.mark.parametrize("option", ["none", "local", "slurm", "optuna"])
def test_every_option_of_sweep_composes(composer: ConfigComposer, option: str) -> None:
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    overrides = [f"sweep={option}", "seed=0,1"]
    assert composer.validate(overrides, sweep=True) == []
    spec = composer.sweep_spec(overrides, sweep=True)
    assert spec.keeps_folder == (option != "none")
    assert spec.searches == (option == "optuna")
    assert (spec.name, len(spec.jobs)) == (option, 2)


def test_a_missing_plugin_is_reported_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    store = ConfigStore.instance()
    others = {name: node for name, node in store.repo["hydra"]["sweeper"].items() if name != "optuna.yaml"}
    monkeypatch.setitem(store.repo["hydra"], "sweeper", others)
    (line,) = ConfigComposer().validate(["sweep=optuna"], sweep=True)
    assert line.startswith("optuna: ") and "'.[optuna]'" in line


# Files and folders


def test_the_runs_folder_must_be_creatable(
    composer: ConfigComposer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("IMSM_RUNS", "/dev/null/x")
    (line,) = composer.validate(["method=original,peft"], sweep=True)
    assert line.startswith("IMSM_RUNS=/dev/null/x: ") and "/dev/null is" in line
    assert composer.validate([], sweep=False, composition_only=True) == []
    assert composer.validate(["mode=plan"], sweep=False) == []
    monkeypatch.setenv("IMSM_RUNS", str(tmp_path / "new" / "runs"))
    assert composer.validate([], sweep=False) == []
    assert not list(tmp_path.iterdir())


def test_composition_only_checks_names_and_not_values(composer: ConfigComposer) -> None:
    assert composer.validate(["gate.rank=0"], sweep=False, composition_only=True) == []
    assert composer.validate(["gate.rnak=1"], sweep=False, composition_only=True)


def test_the_files_of_a_mirror_and_a_local_dir_are_checked(composer: ConfigComposer, tmp_path: Path) -> None:
    gemma = "backbone=gemma3_270m"
    errors = composer.validate([gemma, f"data.mirror_dir={tmp_path}"], sweep=False)
    assert errors and all(str(tmp_path) in line for line in errors)
    (tmp_path / "train.jsonl").write_text(ROW)
    data = ["data=jsonl", f"data.local_dir={tmp_path}"]
    (line,) = composer.validate([gemma, *data], sweep=False)
    assert "test" in line
    (tmp_path / "test.jsonl").write_text(ROW)
    assert composer.validate([gemma, *data], sweep=False) == []
    (line,) = composer.validate([gemma, *data, "data.source=miniature"], sweep=False)
    assert "data.local_dir" in line or "data.source" in line


def test_a_mirror_provides_the_forgetting_tasks_next_to_a_local_dir(composer: ConfigComposer, tmp_path: Path) -> None:
    for split in ("train", "test"):
        (tmp_path / f"{split}.jsonl").write_text(ROW)
    overrides = ["backbone=gemma3_270m", "data=jsonl", f"data.local_dir={tmp_path}"]
    assert composer.validate([*overrides, f"data.mirror_dir={MINIATURE}"], sweep=False) == []
    (line,) = composer.validate([*overrides, "data.mirror_dir=/no/such/place"], sweep=False)
    assert line.startswith("data.mirror_dir=/no/such/place")


@pytest.mark.skipif(not os.environ.get("IMSM_TEST_HUB"), reason="IMSM_TEST_HUB is not set")
def test_the_real_datasets_match_the_yamls(composer: ConfigComposer) -> None:
    mirror = f"data.mirror_dir={os.environ['IMSM_TEST_HUB']}"
    assert composer.validate(["backbone=llama3", mirror, "data=mrpc,cola,ropes,gsm8k"], sweep=True) == []
    (line,) = composer.validate([mirror], sweep=False)
    assert "backbone" in line


# The user's folder


@pytest.fixture
def custom(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ConfigComposer:
    files = {
        "h3_own_method.py": (
            "from imsm.utils.instantiate import Probability\n"
            "def own(*, target_modules: list[str], strength: Probability, kind: str = 'x'): ...\n"
            "class OwnGate:\n"
            "    def __init__(self, *, hidden_size: int, slope: float): ...\n"
        ),
        "peft/own.yaml": "name: own\n_target_: h3_own_method.own\ntarget_roles: [attention_query]\nstrength: 0.5\n",
        "gate/own.yaml": "name: own\n_target_: h3_own_method.OwnGate\npooling: mean\nslope: 2.0\n",
        "metric/mine.yaml": "module: nowhere.to.be_found\n",
        "metric/broken.yaml": "module: [unclosed\n",
        "data/bad.yaml": "name: bad\nmodule: imsm.data.tasks.webq\n",
        "logger/wandb.yaml": (conf_folder() / "logger" / "none.yaml").read_text(),
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    return ConfigComposer(tmp_path)


@pytest.mark.parametrize(
    ("overrides", "part"),
    [
        ("peft=own peft.strength=1", "peft.strength=1"),
        ("peft=own +peft.strengh=0.1", "did you mean peft.strength=0.1?"),
        ("peft=own +peft.kind=3", "peft.kind=3"),
        ("peft=own ~peft.strength", "peft.strength: is missing"),
        ("gate=own +gate.slop=1", "did you mean gate.slope=1?"),
        ("data.metric=mine", "nowhere.to.be_found"),
        ("data.metric=broken", "broken.yaml"),
        ("evaluation.tasks=[bad]", "data.hub"),
    ],
)
def test_custom_options_are_validated_like_shipped_ones(custom: ConfigComposer, overrides: str, part: str) -> None:
    assert part in "\n".join(custom.validate(overrides.split(), sweep=False))


def test_valid_custom_options_have_no_errors(custom: ConfigComposer) -> None:
    for overrides in (
        ["peft=own", "gate=own"],
        ["backbone.local_resolver=h3_own_method.own"],
        ["gate=own", "backbone=llama3", "trainer=paper_code", "data.source=miniature"],
    ):
        assert custom.validate(overrides, sweep=False) == []


def test_custom_options_precede_shipped_ones_of_the_same_name(custom: ConfigComposer) -> None:
    assert custom.compose(["logger=wandb"]).logger == ConfigComposer().compose(["logger=none"]).logger
    assert compose.CONFIG_DIR not in os.environ
    with pytest.raises(UserError, match="peft=own"):
        ConfigComposer().compose(["peft=own"])


# words of a command line -> part of the one error that they give
UNCLEAR = {
    ("seed=0", "seed=1"): "seed=1: conflicts with seed=0",
    ("gate.rank", "=", "4"): "write gate.rank=4",
    ("gate.rank=", "4"): "write gate.rank=4",
    ("gate.rank", "=4"): "write gate.rank=4",
    ("gate.rank==4",): "write gate.rank=4",
    ("method=original,", "peft"): "write method=original,peft",
    ("method=original", ",peft", "seed=1"): "write method=original,peft",
    ("method=peft,",): "ends with a comma",
    ("data.local_dir=/x/a=b",): """quote it: 'data.local_dir="/x/a=b"'""",
    ("data.local_dir=/x/[a]",): """quote it: 'data.local_dir="/x/[a]"'""",
    ("data.local_dir=/x/(a)",): """quote it: 'data.local_dir="/x/(a)"'""",
    ("data.local_dir=a,b",): """quote the text: 'data.local_dir="a,b"'""",
}


@pytest.mark.parametrize("words", UNCLEAR, ids=" ".join)
def test_an_unclear_command_line_is_one_line_with_the_command_that_was_meant(
    composer: ConfigComposer, words: tuple[str, ...]
) -> None:
    (line,) = composer.validate([*words, "trainer.num_epochs=2"], sweep=False)
    assert UNCLEAR[words] in line and "\n" not in line


@pytest.mark.parametrize("name", ["a=b", "a b", "a,b", "[a]", "(a)", "a:b"])
def test_a_quoted_path_may_have_any_character(composer: ConfigComposer, tmp_path: Path, name: str) -> None:
    folder = tmp_path / name
    folder.mkdir()
    for split in ("train", "test"):
        (folder / f"{split}.jsonl").write_text(ROW)
    backbone = ["backbone=gemma3_270m"]  # reads real text
    assert composer.validate([*backbone, "data=jsonl", f'data.local_dir="{folder}"'], sweep=False) == []
    (line,) = composer.validate([*backbone, "data=jsonl", f'data.local_dir="{folder}/test.jsonl"'], sweep=False)
    assert "is a file; give the folder" in line


def test_equal_overrides_may_be_repeated(composer: ConfigComposer) -> None:
    assert composer.validate(["seed=1", "data=gsm8k", "seed=1", "data=gsm8k"], sweep=False) == []


@pytest.mark.parametrize(
    "key", ["run_dir", "data.local_dir", "data.mirror_dir", "frozen_adapter", "backbone.name_or_path", "resume"]
)
def test_a_path_that_the_system_rejects_is_one_short_line_beside_the_other_errors(
    composer: ConfigComposer, key: str
) -> None:
    errors = composer.validate([f"{key}=./{'x/' * 2500}", "seed=-1"], sweep=False)
    assert sorted(line.partition("=")[0] for line in errors) == sorted([key, "seed"])
    assert all(len(line) < 250 for line in errors)


def test_overrides_that_the_method_does_not_use_are_found(composer: ConfigComposer) -> None:
    gate, training = ["gate=query", "gate.rank=4"], ["peft.r=4", "trainer.num_epochs=1", "rehearsal=self"]
    used = ["seed=1", "data=mrpc", "evaluation.limit=3"]
    for method, unused in (("imsm", []), ("peft", gate), ("original", [*gate, *training])):
        assert composer.without_effect([f"method={method}", *gate, *training, *used]) == unused


def test_keys_of_the_models_loss_are_unused_where_only_a_gate_learns_by_its_route_loss(
    composer: ConfigComposer,
) -> None:
    keys = ["trainer.token_weight=dft", "trainer.kl_beta=0.1", "rehearsal.weight=2", "rehearsal.loss=ce"]
    for loss, frozen, unused in (("route", ["frozen_adapter=run"], keys), ("route", [], []), ("route_kl", [], [])):
        given = ["rehearsal=self", "rehearsal.num_texts=4", f"gate.loss={loss}", *keys, *frozen]
        assert composer.without_effect(given) == unused
        assert not set(composer.without_effect(["method=peft", *given])) & set(keys)


@pytest.mark.parametrize(
    ("overrides", "name"), [((), "none"), (("backbone=llama3",), "wandb"), (("logger=wandb",), "wandb")]
)
def test_every_backbone_but_the_miniature_logs_to_wandb(overrides: tuple[str, ...], name: str) -> None:
    assert ConfigComposer().compose(list(overrides)).logger.name == name
