"""What a command line's check says, problem by problem; nothing is run here."""

from __future__ import annotations

from pathlib import Path

import pytest

from imsm.folders import conf_folder
from imsm.preflight import Preflight


@pytest.fixture(scope="module")
def preflight() -> Preflight:
    return Preflight(conf=conf_folder())


FINE = [
    [],
    ["backbone=llama3", "peft=lora", "data=gsm8k"],
    ["backbone=llama3", "backbone.path=owner/model", "data.source=miniature"],
    ["backbone=gemma3_270m", "data=mrpc", "data.train_limit=512", "trainer.epochs=2"],
    ["gate=mean", "method=imsm", "seed=3"],
    ["method=original", "data=multirc"],
    ["backbone=llama3", "+backbone.architecture.sliding_window=8"],
    ["++gate.rank=4"],
    ["evaluation.tasks=[target,webq]", "evaluation.items=30"],
    ["hydra.verbose=true"],
    ["data.prompts=corrected", "trainer.learning_rate=1e-2", "trainer.clip_norm=null"],
]


@pytest.mark.parametrize("overrides", FINE, ids=" ".join)
def test_what_is_right_passes(preflight: Preflight, overrides: list[str]) -> None:
    assert preflight.problems(overrides, sweep=False) == []


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
    ("++peft.rnk=8", ["did you mean peft.rank=8?"]),
    ("+gate.rank=4", ["there already"]),
    ("+epochs=4", ["no such key"]),
    ("rank=4", ["did you mean peft.rank=4 or gate.rank=4?"]),
    ("bakbone=llama3", ["did you mean backbone=llama3?"]),
    ("backbone.roles.experts=[up]", ["+backbone.roles.experts=[up] adds it"]),
    ("seed.value=8", ["seed holds no keys"]),
    ("~trainer.optimizer", ["trainer.optimizer: is missing", "adamw or adafactor"]),
    ("~trainer.optimiser", ["there is no such key"]),
    # form
    ("lora", ["not of the form key=value", "peft=lora"]),
    ("data.folder=[a", ["cannot be read"]),
    ("gate.rank=4,8", ["add -m"]),
    # types and ranges
    ("gate.rank=0", ["gate.rank=0: must be at least 1"]),
    ("gate.rank=2.5", ["gate.rank=2.5: must be a whole number"]),
    ('gate.rank="8"', ['gate.rank="8": must be a whole number or null']),
    ("peft.rank=0", ["peft.rank=0: must be at least 1"]),
    ("peft.dropout=1", ["peft.dropout=1: must be less than 1"]),
    ("peft.rank=true", ["peft.rank=true: must be a whole number"]),
    ("trainer.gradient_checkpointing=1", ["must be true or false"]),
    ("trainer.learning_rate=nan", ["trainer.learning_rate=nan"]),
    ("trainer.warmup_ratio=1.5", ["must be less than 1"]),
    ("trainer.kl_weight=0", ["trainer.kl_weight=0: must be greater than 0"]),
    ("trainer.kl_mask_target=true", ["set trainer.kl_weight as well"]),
    ("trainer.optimizer=adam", ["adamw or adafactor", "did you mean trainer.optimizer=adamw?"]),
    ("gate.inputs=[tunde]", ["did you mean tuned?"]),
    ("evaluation.tasks=webq", ["must be a list"]),
    ("backbone.roles=null", ["must be a mapping, e.g. {a:1}"]),
    ("seed=-1", ["must be at least 0"]),
    ("mode=evalute", ["did you mean mode=evaluate?"]),
    ("tracker.mode=of", ["auto, online or offline"]),
    ("engine.device=gpu", ["auto, cpu or cuda"]),
    ("data.stop=\"'['\"", ["regular expression"]),
    ("trainer.learning_rate=${peft.recipes.paper.rate}", ["cannot be resolved"]),
    # one key and another
    ("trainer.micro_batch_size=3", ["must be a multiple", "set trainer.micro_batch_size=2"]),
    ("gate.rank=null", ["needs a rank"]),
    ("gate.trained=false", ["choose gate=mean"]),
    ("method.trained=false", ["needs method.trained=true"]),
    ("data=multirc", ["no split to train on", "method=original"]),
    ("data=jsonl", ["give data.folder="]),
    ("data.source=mirror", ["give data.mirror="]),
    ("data.source=hub", ["cannot read real text", "backbone=gemma3_270m"]),
    ("peft.roles=[attention_qury]", ["did you mean attention_query?"]),
    ("peft._target_=imsm.adapters.lora.lorra", ["did you mean imsm.adapters.lora.lora?"]),
    ("peft._target_=imsm.adapters.nothing.lora", ["--config-dir"]),
    ("data.module=imsm.data.tasks.nothing", ["there is no such module"]),
    ("evaluation.tasks=[webqq]", ["no such task", "did you mean webq?"]),
    ("evaluation.tasks=[webq,webq]", ["named twice"]),
    ("data.metric=acuracy", ["no such metric", "did you mean accuracy?"]),
    ("backbone.local=os.system", ["must be a function of imsm", "--config-dir"]),
    ("backbone.local=imsm.nowhere.f", ["backbone.local=imsm.nowhere.f", "No module"]),
    ("backbone.local=imsm.backbones.gemma3.folder", ["did you mean"]),
    ("data.chat_template=true", ["no chat template", "llama3_1_instruct"]),
    ("resume=atuo", ["must be auto, must, never", "did you mean resume=auto?"]),
    # what must be there
    ("data.mirror=/no/such/place", ["there is no such folder"]),
    ("data.folder=/no/such/place", ["there is no such folder"]),
    ("backbone.path=/no/such/place", ["there is no such folder"]),
    ("backbone.path='not an id'", ["no hub id and no folder"]),
]


def test_learned_keys_and_gradient_checkpointing(preflight: Preflight) -> None:
    asked = ["peft=prefix_tuning", "trainer.gradient_checkpointing=true"]
    (line,) = preflight.problems(asked, sweep=False)
    assert "set trainer.gradient_checkpointing=false" in line
    for fine in (["peft=prefix_tuning"], ["peft=prompt_tuning", asked[1]], [asked[1]]):
        assert preflight.problems(fine, sweep=False) == []


@pytest.mark.parametrize(("override", "told"), WRONG, ids=[case[0] for case in WRONG])
def test_what_is_wrong_is_told(preflight: Preflight, override: str, told: list[str]) -> None:
    problems = preflight.problems([override], sweep=False)
    assert problems
    for part in told:
        assert any(part in line for line in problems), problems
    assert all("\n" not in line for line in problems)


def test_all_problems_at_once(preflight: Preflight) -> None:
    overrides = [
        "peft=lroa",
        "gate=mean",
        "gate.rank=8",  # only a valid gate can say that it has no rank
        "trainer.optimizer=adam",
        "trainer.micro_batch_size=3",  # what it demands shows although its section is not valid
        "data.mirror=/no/such/place",
        "data.train_limit=0",
        "evaluation.tasks=[targte]",
        "foo",
        "gate.rnak=2",
    ]
    problems = preflight.problems(overrides, sweep=False)
    for override in overrides:
        if override != "gate=mean":
            key = override.split("=")[0]
            if key == "trainer.micro_batch_size":
                key = "multiple of trainer.micro_batch_size=3"
            assert any(key in line for line in problems), (key, problems)
    assert len(problems) == len(set(problems))


def test_an_unknown_option_hides_what_it_would_have_decided(preflight: Preflight) -> None:
    """The rank of a method that is not known may be right: only its name is told."""
    problems = preflight.problems(["peft=adalra", "peft.init_rank=4"], sweep=False)
    assert len(problems) == 1
    assert "did you mean peft=adalora?" in problems[0]


ADALORA = [
    (["peft.target_rank=20"], "peft.target_rank=20: must be in 1..peft.init_rank=12"),
    (["peft.warmup_fraction=0.7", "peft.final_fraction=0.3"], "their sum must be below 1"),
]


@pytest.mark.parametrize(("overrides", "told"), ADALORA, ids=["ranks", "fractions"])
def test_arguments_that_do_not_fit_each_other_are_told(
    preflight: Preflight, overrides: list[str], told: str
) -> None:
    (line,) = preflight.problems(["peft=adalora", *overrides], sweep=False)
    assert told in line


def test_members_of_a_sweep_may_not_share_a_folder(preflight: Preflight) -> None:
    (line,) = preflight.problems(["method=peft,imsm", "folder=x"], sweep=True)
    assert line.startswith("folder=x: 2 members of the sweep would share it")
    assert preflight.problems(["method=peft", "folder=x,y"], sweep=True) == []
    assert preflight.problems(["method=peft,imsm", "folder=null"], sweep=True) == []


@pytest.mark.parametrize("swept", ["evaluation.protocol=clean,released", "evaluation=all,mini"])
def test_members_of_a_sweep_may_not_differ_in_judging_alone(
    preflight: Preflight, swept: str
) -> None:
    (line,) = preflight.problems(["seed=0,1", swept], sweep=True)
    assert line.startswith(f"{swept}: ") and "mode=evaluate" in line
    assert preflight.problems(["seed=0,1", "evaluation.protocol=released"], sweep=True) == []


def test_a_root_of_runs_that_cannot_be_made_is_told(
    preflight: Preflight, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("IMSM_RUNS", "/dev/null/x")
    (line,) = preflight.problems(["method=original,peft"], sweep=True)
    assert line.startswith("IMSM_RUNS=/dev/null/x: ") and "/dev/null is no folder" in line
    assert preflight.problems([], sweep=False, composition_only=True) == []
    monkeypatch.setenv("IMSM_RUNS", str(tmp_path / "new" / "runs"))
    assert preflight.problems([], sweep=False) == []
    assert not list(tmp_path.iterdir())


def test_every_member_of_a_sweep_is_looked_at(preflight: Preflight) -> None:
    overrides = ["gate.rank=8,0", "peft=lora,lroa", "seed=range(0,3)"]
    problems = preflight.problems(overrides, sweep=True)
    assert len(problems) == 2
    assert preflight.problems(["gate.rank=4,8", "peft=glob(*,exclude=any)"], sweep=True) == []
    assert preflight.problems(["method=original,peft,imsm"], sweep=True) == []


def test_members_may_depend_on_each_others_choices(preflight: Preflight) -> None:
    (problem,) = preflight.problems(["gate=query,mean", "gate.rank=8"], sweep=True)
    assert "gate=mean reads no inputs" in problem


def test_names_alone_for_looking_at_a_configuration(preflight: Preflight) -> None:
    wrong_value, wrong_name = ["gate.rank=0"], ["gate.rnak=1"]
    assert preflight.problems(wrong_value, sweep=False, composition_only=True) == []
    assert preflight.problems(wrong_name, sweep=False, composition_only=True)


def test_mirrors_and_folders_are_looked_into(preflight: Preflight, tmp_path: Path) -> None:
    real = ["backbone=gemma3_270m"]
    empty = preflight.problems([*real, f"data.mirror={tmp_path}"], sweep=False)
    assert empty and all(str(tmp_path) in line for line in empty)
    (tmp_path / "train.jsonl").write_text('{"input": "a", "output": "b"}\n')
    data = ["data=jsonl", f"data.folder={tmp_path}", "data.source=miniature"]
    (line,) = preflight.problems([*real, *data[:2]], sweep=False)
    assert "test" in line
    (tmp_path / "test.jsonl").write_text('{"input": "a", "output": "b"}\n')
    assert preflight.problems([*real, *data[:2]], sweep=False) == []
    (line,) = preflight.problems([*real, *data], sweep=False)
    assert "leave one of the two out" in line


def test_a_mirror_serves_the_forgetting_tests_beside_ones_own_folder(
    preflight: Preflight, tmp_path: Path
) -> None:
    from imsm.data.sources import MINIATURE

    for role in ("train", "test"):
        (tmp_path / f"{role}.jsonl").write_text('{"input": "a", "output": "b"}\n')
    overrides = ["backbone=gemma3_270m", "data=jsonl", f"data.folder={tmp_path}"]
    assert preflight.problems([*overrides, f"data.mirror={MINIATURE}"], sweep=False) == []
    problems = preflight.problems([*overrides, "data.mirror=/no/such/place"], sweep=False)
    assert problems == ["data.mirror=/no/such/place: there is no such folder"]


def test_the_real_data_have_what_the_yamls_name(preflight: Preflight) -> None:
    import os

    mirror = os.environ.get("IMSM_TEST_HUB")
    if not mirror:
        pytest.skip("IMSM_TEST_HUB is not set")
    sweep = ["backbone=llama3", f"data.mirror={mirror}", "data=mrpc,cola,ropes,gsm8k"]
    assert preflight.problems(sweep, sweep=True) == []
    (line,) = preflight.problems([f"data.mirror={mirror}"], sweep=False)
    assert "cannot read real text" in line


def test_options_of_ones_own_are_checked_like_ours(tmp_path: Path, monkeypatch) -> None:
    for group in ("peft", "metric", "gate", "data"):
        (tmp_path / group).mkdir()
    (tmp_path / "h3_own_method.py").write_text(
        "from imsm.builders import Probability\n"
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
    own = Preflight(conf=conf_folder(), config_dir=tmp_path)

    def told(*overrides: str) -> str:
        return "\n".join(own.problems(overrides, sweep=False))

    assert told("peft=own", "gate=own") == ""
    assert "must be less than 1" in told("peft=own", "peft.strength=1")
    assert "did you mean peft.strength=0.1?" in told("peft=own", "+peft.strengh=0.1")
    assert "must be a text" in told("peft=own", "+peft.kind=3")
    assert "peft.strength: is missing" in told("peft=own", "~peft.strength")
    assert "did you mean gate.slope=1?" in told("gate=own", "+gate.slop=1")
    assert "nowhere.to.be_found cannot be found" in told("data.metric=mine")
    assert "broken.yaml: is no YAML" in told("data.metric=broken")
    assert told("backbone.local=h3_own_method.own") == ""
    assert told("gate=own", "backbone=llama3", "trainer=released", "data.source=miniature") == ""
    assert "data=bad: data.hub: is missing" in told("evaluation.tasks=[bad]")
