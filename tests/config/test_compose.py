"""What a command line's check says, problem by problem; nothing is run here."""

from __future__ import annotations

from pathlib import Path

import pytest

from imsm.config.compose import ConfigComposer


@pytest.fixture(scope="module")
def preflight() -> ConfigComposer:
    return ConfigComposer()


FINE = [
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
]


@pytest.mark.parametrize("overrides", FINE, ids=" ".join)
def test_what_is_right_passes(preflight: ConfigComposer, overrides: list[str]) -> None:
    assert preflight.validate(overrides, sweep=False) == []


WRONG = [
    # options
    ("peft=lroa", ["peft=lroa", "(adalora, ", "did you mean peft=lora?"]),
    ("peft=null", ["peft=null: no such option"]),
    ("+peft=dora", ["write peft=dora without a +"]),
    ("~peft", ["a run needs one option of peft"]),
    ("data=[gsm8k,mrpc]", ["data takes the name of one option"]),
    ("metric=accuracy", ["did you mean data.metric=accuracy?"]),
    # keys
    ("gate.rnak=8", ["no such key of gate", "did you mean gate.rank=8?"]),
    ("+gate.rnak=8", ["no such key of gate", "did you mean gate.rank=8?"]),
    ("++gate.rnak=8", ["no such key of gate", "did you mean gate.rank=8?"]),
    ("++peft.rnk=8", ["did you mean peft.r=8?"]),
    ("+gate.rank=4", ["there already"]),
    ("+epochs=4", ["no such key"]),
    ("rank=4", ["did you mean peft.r=4 or gate.rank=4?"]),
    ("bakbone=llama3", ["did you mean backbone=llama3?"]),
    ("backbone.module_names.experts=[up]", ["+backbone.module_names.experts=[up] adds it"]),
    ("seed.value=8", ["seed holds no keys"]),
    ("~trainer.optimizer", ["trainer.optimizer: is missing", "adamw or adafactor"]),
    ("~trainer.optimiser", ["there is no such key"]),
    # form
    ("lora", ["not of the form key=value", "peft=lora"]),
    ("data.local_dir=[a", ["cannot be read"]),
    ("gate.rank=4,8", ["add -m"]),
    # types and ranges
    ("gate.rank=0", ["gate.rank=0: must be at least 1"]),
    ("gate.rank=2.5", ["gate.rank=2.5: must be a whole number"]),
    ('gate.rank="8"', ['gate.rank="8": must be a whole number or null']),
    ("peft.r=0", ["peft.r=0: must be at least 1"]),
    ("peft.lora_dropout=1", ["peft.lora_dropout=1: must be less than 1"]),
    ("peft.r=true", ["peft.r=true: must be a whole number"]),
    ("trainer.gradient_checkpointing=1", ["must be true or false"]),
    ("trainer.learning_rate=nan", ["trainer.learning_rate=nan"]),
    ("trainer.warmup_ratio=1.5", ["must be less than 1"]),
    ("trainer.kl_beta=0", ["trainer.kl_beta=0: must be greater than 0"]),
    ("trainer.kl_mask_target=true", ["set trainer.kl_beta as well"]),
    ("trainer.optimizer=adam", ["adamw or adafactor", "did you mean trainer.optimizer=adamw?"]),
    ("gate.inputs=[tunde]", ["did you mean tuned?"]),
    ("evaluation.tasks=webq", ["must be a list"]),
    ("backbone.module_names=null", ["must be a mapping, e.g. {a:1}"]),
    ("seed=-1", ["must be at least 0"]),
    ("mode=evalute", ["did you mean mode=evaluate?"]),
    ("tracker.mode=of", ["auto, online or offline"]),
    ("engine.device=gpu", ["auto, cpu or cuda"]),
    ("data.stop=\"'['\"", ["regular expression"]),
    ("trainer.learning_rate=${peft.recipes.paper.rate}", ["cannot be resolved"]),
    # one key and another
    ("trainer.micro_batch_size=3", ["must be a multiple", "set trainer.micro_batch_size=2"]),
    ("gate.rank=null", ["needs a rank"]),
    ("gate.trainable=false", ["choose gate=no_gate"]),
    ("method.trainable=false", ["needs method.trainable=true"]),
    ("data=multirc", ["no split to train on", "method=original"]),
    ("data=jsonl", ["give data.local_dir="]),
    ("data.source=mirror", ["give data.mirror_dir="]),
    ("data.source=hub", ["cannot read real text", "backbone=gemma3_270m"]),
    ("peft.target_roles=[attention_qury]", ["did you mean attention_query?"]),
    ("peft._target_=peft.LoraConfg", ["did you mean peft.LoraConfig?"]),
    ("peft._target_=imsm.models.adapters.nothing.lora", ["--config-dir"]),
    ("data.module=imsm.data.tasks.nothing", ["there is no such module"]),
    ("evaluation.tasks=[webqq]", ["no such task", "did you mean webq?"]),
    ("evaluation.tasks=[webq,webq]", ["named twice"]),
    ("data.metric=acuracy", ["no such metric", "did you mean accuracy?"]),
    ("backbone.local_resolver=os.system", ["must be a function of imsm", "--config-dir"]),
    ("backbone.local_resolver=imsm.nowhere.f", ["backbone.local_resolver=imsm.nowhere.f", "No module"]),
    ("backbone.local_resolver=imsm.models.backbones.gemma3_gguf.folder", ["did you mean"]),
    ("data.chat_template=true", ["no chat template", "llama3_1_instruct"]),
    ("resume=atuo", ["must be auto, must, never", "did you mean resume=auto?"]),
    # what must be there
    ("data.mirror_dir=/no/such/place", ["there is no such folder"]),
    ("data.local_dir=/no/such/place", ["there is no such folder"]),
    ("backbone.name_or_path=/no/such/place", ["there is no such folder"]),
    ("backbone.name_or_path='not an id'", ["no hub id and no folder"]),
]


def test_learned_keys_and_gradient_checkpointing(preflight: ConfigComposer) -> None:
    asked = ["peft=prefix_tuning", "trainer.gradient_checkpointing=true"]
    (line,) = preflight.validate(asked, sweep=False)
    assert "set trainer.gradient_checkpointing=false" in line
    for fine in (["peft=prefix_tuning"], ["peft=prompt_tuning", asked[1]], [asked[1]]):
        assert preflight.validate(fine, sweep=False) == []


@pytest.mark.parametrize(("override", "told"), WRONG, ids=[case[0] for case in WRONG])
def test_what_is_wrong_is_told(preflight: ConfigComposer, override: str, told: list[str]) -> None:
    errors = preflight.validate([override], sweep=False)
    assert errors
    for part in told:
        assert any(part in line for line in errors), errors
    assert all("\n" not in line for line in errors)


def test_all_problems_at_once(preflight: ConfigComposer) -> None:
    overrides = [
        "peft=lroa",
        "gate=no_gate",
        "gate.rank=8",  # only a valid gate can say that it has no rank
        "trainer.optimizer=adam",
        "trainer.micro_batch_size=3",  # what it demands shows although its section is not valid
        "data.mirror_dir=/no/such/place",
        "data.max_train_examples=0",
        "evaluation.tasks=[targte]",
        "foo",
        "gate.rnak=2",
    ]
    errors = preflight.validate(overrides, sweep=False)
    for override in overrides:
        if override != "gate=no_gate":
            key = override.split("=")[0]
            if key == "trainer.micro_batch_size":
                key = "multiple of trainer.micro_batch_size=3"
            assert any(key in line for line in errors), (key, errors)
    assert len(errors) == len(set(errors))


def test_an_unknown_option_hides_what_it_would_have_decided(preflight: ConfigComposer) -> None:
    """The rank of a method that is not known may be right: only its name is told."""
    errors = preflight.validate(["peft=adalra", "peft.init_r=4"], sweep=False)
    assert len(errors) == 1
    assert "did you mean peft=adalora?" in errors[0]


ADALORA = [
    (["peft.target_r=20"], "peft.target_r=20: must be in 1..peft.init_r=12"),
    (["peft.tinit_ratio=0.7", "peft.tfinal_ratio=0.3"], "their sum must be below 1"),
]


@pytest.mark.parametrize(("overrides", "told"), ADALORA, ids=["ranks", "fractions"])
def test_arguments_that_do_not_fit_each_other_are_told(
    preflight: ConfigComposer, overrides: list[str], told: str
) -> None:
    (line,) = preflight.validate(["peft=adalora", *overrides], sweep=False)
    assert told in line


def test_members_of_a_sweep_may_not_share_a_folder(preflight: ConfigComposer) -> None:
    (line,) = preflight.validate(["method=peft,imsm", "run_dir=x"], sweep=True)
    assert line.startswith("run_dir=x: 2 members of the sweep would share it")
    assert preflight.validate(["method=peft", "run_dir=x,y"], sweep=True) == []
    assert preflight.validate(["method=peft,imsm", "run_dir=null"], sweep=True) == []


@pytest.mark.parametrize("swept", ["evaluation.protocol=strict,released", "evaluation=all,mini"])
def test_members_of_a_sweep_may_not_differ_in_judging_alone(preflight: ConfigComposer, swept: str) -> None:
    (line,) = preflight.validate(["seed=0,1", swept], sweep=True)
    assert line.startswith(f"{swept}: ") and "mode=evaluate" in line
    assert preflight.validate(["seed=0,1", "evaluation.protocol=paper_code"], sweep=True) == []


def test_a_root_of_runs_that_cannot_be_made_is_told(
    preflight: ConfigComposer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("IMSM_RUNS", "/dev/null/x")
    (line,) = preflight.validate(["method=original,peft"], sweep=True)
    assert line.startswith("IMSM_RUNS=/dev/null/x: ") and "/dev/null is no folder" in line
    assert preflight.validate([], sweep=False, composition_only=True) == []
    monkeypatch.setenv("IMSM_RUNS", str(tmp_path / "new" / "runs"))
    assert preflight.validate([], sweep=False) == []
    assert not list(tmp_path.iterdir())


def test_every_member_of_a_sweep_is_looked_at(preflight: ConfigComposer) -> None:
    overrides = ["gate.rank=8,0", "peft=lora,lroa", "seed=range(0,3)"]
    errors = preflight.validate(overrides, sweep=True)
    assert len(errors) == 2
    assert preflight.validate(["gate.rank=4,8", "peft=glob(*,exclude=any)"], sweep=True) == []
    assert preflight.validate(["method=original,peft,imsm"], sweep=True) == []


def test_members_may_depend_on_each_others_choices(preflight: ConfigComposer) -> None:
    (problem,) = preflight.validate(["gate=query,mean", "gate.rank=8"], sweep=True)
    assert "gate=no_gate reads no inputs" in problem


def test_names_alone_for_looking_at_a_configuration(preflight: ConfigComposer) -> None:
    wrong_value, wrong_name = ["gate.rank=0"], ["gate.rnak=1"]
    assert preflight.validate(wrong_value, sweep=False, composition_only=True) == []
    assert preflight.validate(wrong_name, sweep=False, composition_only=True)


def test_mirrors_and_folders_are_looked_into(preflight: ConfigComposer, tmp_path: Path) -> None:
    real = ["backbone=gemma3_270m"]
    empty = preflight.validate([*real, f"data.mirror_dir={tmp_path}"], sweep=False)
    assert empty and all(str(tmp_path) in line for line in empty)
    (tmp_path / "train.jsonl").write_text('{"input": "a", "output": "b"}\n')
    data = ["data=jsonl", f"data.local_dir={tmp_path}", "data.source=miniature"]
    (line,) = preflight.validate([*real, *data[:2]], sweep=False)
    assert "test" in line
    (tmp_path / "test.jsonl").write_text('{"input": "a", "output": "b"}\n')
    assert preflight.validate([*real, *data[:2]], sweep=False) == []
    (line,) = preflight.validate([*real, *data], sweep=False)
    assert "leave one of the two out" in line


def test_a_mirror_serves_the_forgetting_tests_beside_ones_own_folder(
    preflight: ConfigComposer, tmp_path: Path
) -> None:
    from imsm.data.sources import MINIATURE

    for role in ("train", "test"):
        (tmp_path / f"{role}.jsonl").write_text('{"input": "a", "output": "b"}\n')
    overrides = ["backbone=gemma3_270m", "data=jsonl", f"data.local_dir={tmp_path}"]
    assert preflight.validate([*overrides, f"data.mirror_dir={MINIATURE}"], sweep=False) == []
    errors = preflight.validate([*overrides, "data.mirror_dir=/no/such/place"], sweep=False)
    assert errors == ["data.mirror_dir=/no/such/place: there is no such folder"]


def test_the_real_data_have_what_the_yamls_name(preflight: ConfigComposer) -> None:
    import os

    mirror = os.environ.get("IMSM_TEST_HUB")
    if not mirror:
        pytest.skip("IMSM_TEST_HUB is not set")
    sweep = ["backbone=llama3", f"data.mirror_dir={mirror}", "data=mrpc,cola,ropes,gsm8k"]
    assert preflight.validate(sweep, sweep=True) == []
    (line,) = preflight.validate([f"data.mirror_dir={mirror}"], sweep=False)
    assert "cannot read real text" in line


def test_options_of_ones_own_are_checked_like_ours(tmp_path: Path, monkeypatch) -> None:
    for group in ("peft", "metric", "gate", "data"):
        (tmp_path / group).mkdir()
    (tmp_path / "h3_own_method.py").write_text(
        "from imsm.utils.instantiate import Probability\n"
        "def own(*, target_modules: list[str], strength: Probability, kind: str = 'x'): ...\n"
        "class OwnGate:\n"
        "    def __init__(self, *, hidden_size: int, slope: float): ...\n"
    )
    peft = "name: own\n_target_: h3_own_method.own\nroles: [attention_query]\nstrength: 0.5\n"
    (tmp_path / "peft" / "own.yaml").write_text(peft)
    gate = "name: own\n_target_: h3_own_method.OwnGate\npooling: mean\nslope: 2.0\n"
    (tmp_path / "gate" / "own.yaml").write_text(gate)
    (tmp_path / "metric" / "mine.yaml").write_text("module: nowhere.to.be_found\n")
    (tmp_path / "metric" / "broken.yaml").write_text("module: [unclosed\n")
    (tmp_path / "data" / "bad.yaml").write_text("name: bad\nmodule: imsm.data.tasks.webq\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    own = ConfigComposer(tmp_path)

    def told(*overrides: str) -> str:
        return "\n".join(own.validate(overrides, sweep=False))

    assert told("peft=own", "gate=own") == ""
    assert "must be less than 1" in told("peft=own", "peft.strength=1")
    assert "did you mean peft.strength=0.1?" in told("peft=own", "+peft.strengh=0.1")
    assert "must be a string" in told("peft=own", "+peft.kind=3")
    assert "peft.strength: is missing" in told("peft=own", "~peft.strength")
    assert "did you mean gate.slope=1?" in told("gate=own", "+gate.slop=1")
    assert "nowhere.to.be_found: cannot be found" in told("data.metric=mine")
    assert "broken.yaml: is no YAML" in told("data.metric=broken")
    assert told("backbone.local_resolver=h3_own_method.own") == ""
    assert told("gate=own", "backbone=llama3", "trainer=paper_code", "data.source=miniature") == ""
    assert "data=bad: data.hub: is missing" in told("evaluation.tasks=[bad]")
