"""A gate fitted on a finished adapter: what is learned, what stays, and what is left behind."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from imsm.config.identity import run_name
from imsm.evaluation.result import read_result
from imsm.models.adapters.base import freeze_adapter
from imsm.models.siamese.model import SiameseForCausalLM
from imsm.pipeline import train as training
from imsm.pipeline.plan.plan import make_plan
from imsm.pipeline.run import run_experiment
from imsm.pipeline.start import start_run
from imsm.training import trainer as loop
from imsm.utils.errors import UserError
from tests.helpers.config import config
from tests.helpers.tiny_backbone import save_backbone
from tests.models.siamese.tiny import ATTENTION, tiny_siamese

WORDS = ["red", "green", "blue", "black", "white", "brown", "pink", "grey"]
ADAPTER = "model/adapter/adapter_model.safetensors"
GATE = "model/gate.safetensors"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A backbone and data; the answer to a word is the word after it."""
    root = tmp_path_factory.mktemp("made")
    pairs = list(zip(WORDS, WORDS[1:] + WORDS[:1], strict=True))
    rows = [{"input": f"after {one} comes", "output": f" {other}"} for one, other in pairs]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (root / "data").mkdir()
    for name in ("train", "test"):
        (root / "data" / f"{name}.jsonl").write_text(lines)
    save_backbone(root / "backbone", texts=[row["input"] + row["output"] for row in rows])
    return root


def choices(made: Path, *more: str) -> list[str]:
    return [
        "backbone=llama3",
        f"backbone.name_or_path={made / 'backbone'}",
        "backbone.dtype=float32",
        "data=jsonl",
        f"data.local_dir={made / 'data'}",
        "data.metric=contain",
        "data.max_new_tokens=3",
        "evaluation.tasks=[target]",
        "trainer.num_epochs=3",
        "trainer.learning_rate=0.03",
        "trainer.global_batch_size=4",
        *more,
    ]


def run(made: Path, root: Path, *more: str) -> Path:
    """Carry a run out; returns its folder."""
    chosen = config(*choices(made, *more))
    run_experiment(chosen, runs_root=root)
    return root / run_name(chosen)


@pytest.fixture(scope="module")
def source(made: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished PEFT run, trained with dropout."""
    return run(made, tmp_path_factory.mktemp("source"), "method=peft", "peft.lora_dropout=0.3")


@pytest.fixture(scope="module")
def watched(made: Path, source: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    """A run on its adapter, and what its training was given."""
    given: dict[str, Any] = {}
    train = training.train

    def watching(model: SiameseForCausalLM, *arguments: Any, **named: Any) -> Any:
        values = named["engine"].trainable_state_dict()
        given.update(named, began={name: value.clone() for name, value in values.items()})
        return train(model, *arguments, **named)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "train", watching)
        yield run(made, source.parent, "peft.lora_dropout=0.3", f"frozen_adapter={source}"), given


def test_the_gate_alone_learns(watched: tuple[Path, dict[str, Any]]) -> None:
    folder, given = watched
    learned = load_file(folder / GATE)
    assert given["began"].keys() == {f"gate.{name}" for name in learned}
    assert all(not given["began"][f"gate.{n}"].equal(value) for n, value in learned.items())
    assert [group["name"] for group in given["engine"].optimizer.param_groups] == ["gate"]
    counts = read_result(folder)["trainable_parameters"]
    assert counts == {"adapter": 0, "gate": 4 * 32 * 8 + 8 * 32}


def test_the_adapter_stays_bit_for_bit(source: Path, watched: tuple[Path, Any]) -> None:
    folder, _ = watched
    assert (folder / ADAPTER).read_bytes() == (source / ADAPTER).read_bytes()
    tokens = torch.arange(4, 12)[None]
    answers = []
    for place in (source, folder):
        model = SiameseForCausalLM.from_pretrained(place)
        model.stream = "tuned"
        answers.append(model(tokens).logits)
    assert answers[0].equal(answers[1])
    model.stream = "interwoven"
    mixed = model(tokens, query_mask=torch.ones(1, 4)).logits
    assert not mixed.equal(answers[1])


def test_it_is_told_beside_the_run_that_the_adapter_came_from(watched: tuple[Path, Any]) -> None:
    text = (watched[0] / "report.md").read_text()
    assert "| task | metric | items | original | peft | imsm (frozen adapter) |" in text


def test_the_same_command_trains_nothing(
    made: Path, source: Path, watched: tuple[Path, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "train_step", None)  # a step would fail
    again = run(made, source.parent, "peft.lora_dropout=0.3", f"frozen_adapter={source}")
    assert again == watched[0]


def test_interrupted_it_ends_as_if_nothing_had_been(
    made: Path, source: Path, watched: tuple[Path, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = ("peft.lora_dropout=0.3", f"frozen_adapter={source}")
    step, calls = loop.train_step, []

    def interrupting(*arguments: Any, **named: Any) -> dict[str, float]:
        calls.append(named["step"])
        if len(calls) == 3:
            os.kill(os.getpid(), signal.SIGINT)
        return step(*arguments, **named)

    monkeypatch.setattr(loop, "train_step", interrupting)
    with pytest.raises(KeyboardInterrupt):
        run(made, tmp_path, *given)
    folder = run(made, tmp_path, *given)
    assert calls == [1, 2, 3, 4, 5, 6]
    for file in (ADAPTER, GATE):
        assert (folder / file).read_bytes() == (watched[0] / file).read_bytes()


def test_another_adapter_at_the_same_place_is_refused(made: Path, source: Path, tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    shutil.copytree(source, mine)
    given = ("peft.lora_dropout=0.3", f"frozen_adapter={mine}", "trainer.num_epochs=1")
    run(made, tmp_path, *given)
    save_file({n: v + 1 for n, v in load_file(mine / ADAPTER).items()}, mine / ADAPTER)
    with pytest.raises(UserError, match="the frozen adapter changed since this run started"):
        run(made, tmp_path, *given)


@pytest.mark.parametrize(
    ("method", "more"),
    [
        ("peft", ["peft=adalora", "backbone.dtype=bfloat16"]),
        ("imsm", ["peft=loramoe_blc", "hidden_state_cache=off"]),
        ("peft", ["peft=p_tuning"]),
        pytest.param("peft", ["peft=lora", "trainer.gradient_checkpointing=true"], marks=pytest.mark.slow),
        pytest.param("imsm", ["peft=ia3", "trainer.kl_beta=0.5"], marks=pytest.mark.slow),
        pytest.param(
            "peft",
            ["peft=prefix_tuning", "peft.prefix_projection=true", "peft.encoder_hidden_size=8"],
            marks=pytest.mark.slow,
        ),
        pytest.param("peft", ["peft=prompt_tuning", "trainer.validation_size=2"], marks=pytest.mark.slow),
    ],
)
def test_every_kind_of_adapter_stays_as_it_is(
    made: Path, tmp_path: Path, method: str, more: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    before = run(made, tmp_path, *more, "trainer.num_epochs=1", f"method={method}", "gate=no_query")
    capsys.readouterr()
    after = run(made, tmp_path, *more, "trainer.num_epochs=1", f"frozen_adapter={before}")
    assert "(adapter 0, gate 1,280)" in capsys.readouterr().out
    assert (after / ADAPTER).read_bytes() == (before / ADAPTER).read_bytes()
    log = [json.loads(line) for line in (after / "log.jsonl").open()]
    steps = [record for record in log if "loss" in record]
    assert len(steps) == 2
    assert not any("auxiliary_loss" in record for record in steps)
    model = SiameseForCausalLM.from_pretrained(after)
    assert model.stream == "interwoven"


def test_a_frozen_adapter_answers_in_training_as_it_answers() -> None:
    from tests.helpers.adapters import dora

    model = tiny_siamese(method=dora(target_modules=ATTENTION, r=4, lora_alpha=8, lora_dropout=0.5))
    inputs = {"input_ids": torch.arange(3, 11)[None], "position_ids": torch.arange(8)[None]}
    answer = model.streams.hidden_states(inputs, stream="tuned", cache=None)
    model.train()
    assert not model.streams.hidden_states(inputs, stream="tuned", cache=None).equal(answer)
    freeze_adapter(model.adapted)
    for training_mode in (True, False, True):
        model.train(training_mode)
        assert model.training is training_mode
        assert model.streams.hidden_states(inputs, stream="tuned", cache=None).equal(answer)
        assert model.gate is not None and model.gate.training is training_mode


@pytest.mark.parametrize("peft", ["lora", "p_tuning"])
def test_a_plan_counts_the_gate_alone(made: Path, tmp_path: Path, peft: str) -> None:
    before = run(made, tmp_path, f"peft={peft}", "trainer.num_epochs=1", "method=peft")
    plans = [
        make_plan(config(*choices(made, f"peft={peft}", "mode=plan", *more)))
        for more in ([], [f"frozen_adapter={before}"])
    ]
    assert plans[1].counts == {"adapter": 0, "gate": plans[0].counts["gate"]}
    assert str(before) in plans[1].settings["peft"]
    sizes = [{p.name: p.size for p in plan.memory["memory per GPU, training"]} for plan in plans]
    assert sizes[1]["optimizer"] < sizes[0]["optimizer"]
    assert sizes[1]["activations"] < sizes[0]["activations"]


@pytest.mark.slow
def test_shared_out_over_two_processes_it_stays_whole(
    made: Path, source: Path, watched: tuple[Path, Any], tmp_path: Path
) -> None:
    pytest.importorskip("deepspeed")
    given = choices(made, "peft.lora_dropout=0.3", f"frozen_adapter={source}", f"run_dir={tmp_path}")
    start_run(config(*given, "engine=zero3", "engine.device=cpu", "engine.nproc_per_node=2"), runs_root=source.parent)
    assert (tmp_path / ADAPTER).read_bytes() == (source / ADAPTER).read_bytes()
    expected = load_file(watched[0] / GATE)
    for name, value in load_file(tmp_path / GATE).items():
        assert (value - expected[name]).abs().max() < 5e-3, name  # rounding, through Adam
