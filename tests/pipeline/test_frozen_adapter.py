"""`frozen_adapter`: a gate trained on the adapter of a finished run."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from imsm.evaluation.result import read_result
from imsm.models.adapters.base import freeze_adapter
from imsm.models.siamese.model import SiameseForCausalLM
from imsm.pipeline import run as pipeline_run
from imsm.pipeline.plan.plan import make_plan
from imsm.pipeline.start import start_run
from imsm.training import trainer
from imsm.utils.errors import UserError
from imsm.utils.json_files import write_hashed_json
from imsm.utils.manifest import write_manifest
from imsm.utils.run_dir import MODEL_HASH, RunDir, read_training
from tests.helpers.config import config
from tests.helpers.word_run import interrupt_at, run_words, word_overrides
from tests.models.siamese.tiny import ATTENTION, tiny_siamese

ADAPTER = "model/adapter/adapter_model.safetensors"
GATE = "model/gate.safetensors"


EPOCHS = "trainer.num_epochs=3"


def run(files: Path, root: Path, *overrides: str) -> Path:
    """Execute a run of three epochs; return its folder."""
    return run_words(files, root, EPOCHS, *overrides)


@pytest.fixture(scope="module")
def source(word_files: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished PEFT run, trained with dropout."""
    return run(word_files, tmp_path_factory.mktemp("source"), "method=peft", "peft.lora_dropout=0.3")


@pytest.fixture(scope="module")
def frozen_run(word_files: Path, source: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    """The folder of a run on its adapter, and the arguments and initial weights of its training."""
    given: dict[str, Any] = {}
    train = pipeline_run.train

    def recording(*arguments: Any, **keywords: Any) -> Any:
        values = keywords["engine"].trainable_state_dict()
        given.update(keywords, initial={name: value.clone() for name, value in values.items()})
        return train(*arguments, **keywords)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline_run, "train", recording)
        yield run(word_files, source.parent, "peft.lora_dropout=0.3", f"frozen_adapter={source}"), given


def test_only_the_gate_is_trained(frozen_run: tuple[Path, dict[str, Any]]) -> None:
    folder, given = frozen_run
    trained = load_file(folder / GATE)
    assert given["initial"].keys() == {f"gate.{name}" for name in trained}
    assert all(not given["initial"][f"gate.{n}"].equal(value) for n, value in trained.items())
    assert [group["name"] for group in given["engine"].optimizer.param_groups] == ["gate"]
    counts = read_result(folder)["trainable_parameters"]
    assert counts == {"adapter": 0, "gate": 4 * 32 * 8 + 8 * 32}


def test_the_adapter_is_unchanged_bit_for_bit(source: Path, frozen_run: tuple[Path, Any]) -> None:
    folder, _ = frozen_run
    assert (folder / ADAPTER).read_bytes() == (source / ADAPTER).read_bytes()
    tokens = torch.arange(4, 12)[None]
    logits = []
    for place in (source, folder):
        model = SiameseForCausalLM.from_pretrained(place)
        model.stream = "tuned"
        logits.append(model(tokens).logits)
    assert logits[0].equal(logits[1])
    model.stream = "interwoven"
    mixed = model(tokens, query_mask=torch.ones(1, 4)).logits
    assert not mixed.equal(logits[1])


def test_the_report_compares_with_the_run_of_the_adapter(frozen_run: tuple[Path, Any]) -> None:
    text = (frozen_run[0] / "report.md").read_text()
    assert "imsm (frozen adapter) − peft" in text


def test_a_finished_run_is_not_trained_again(
    word_files: Path, source: Path, frozen_run: tuple[Path, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trainer, "train_step", None)  # a step would fail
    again = run(word_files, source.parent, "peft.lora_dropout=0.3", f"frozen_adapter={source}")
    assert again == frozen_run[0]


def test_an_interrupted_run_resumes_to_the_same_weights(
    word_files: Path, source: Path, frozen_run: tuple[Path, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = ("peft.lora_dropout=0.3", f"frozen_adapter={source}")
    steps = interrupt_at(monkeypatch, 3)
    with pytest.raises(KeyboardInterrupt):
        run(word_files, tmp_path, *given)
    folder = run(word_files, tmp_path, *given)
    assert steps == [1, 2, 3, 4, 5, 6]
    for file in (ADAPTER, GATE):
        assert (folder / file).read_bytes() == (frozen_run[0] / file).read_bytes()


def test_a_changed_adapter_is_rejected(word_files: Path, source: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(source, copy)
    given = ("peft.lora_dropout=0.3", f"frozen_adapter={copy}", "trainer.num_epochs=1")
    run(word_files, tmp_path, *given)
    save_file({n: v + 1 for n, v in load_file(copy / ADAPTER).items()}, copy / ADAPTER)
    with pytest.raises(UserError, match=r"adapter_model\.safetensors: changed since it was saved"):
        run(word_files, tmp_path, *given)
    # as after another training of the adapter
    trained = RunDir(copy)
    write_hashed_json(trained.trained, read_training(trained) | {MODEL_HASH: write_manifest(trained.model)})
    with pytest.raises(UserError, match="the frozen adapter changed since this run started"):
        run(word_files, tmp_path, *given)


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
def test_every_kind_of_adapter_is_unchanged(
    word_files: Path, tmp_path: Path, method: str, more: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    before = run(word_files, tmp_path, *more, "trainer.num_epochs=1", f"method={method}", "gate=no_query")
    capsys.readouterr()
    after = run(word_files, tmp_path, *more, "trainer.num_epochs=1", f"frozen_adapter={before}")
    assert "(adapter 0, gate 1,280)" in capsys.readouterr().out
    assert (after / ADAPTER).read_bytes() == (before / ADAPTER).read_bytes()
    log = [json.loads(line) for line in (after / "log.jsonl").open()]
    steps = [record for record in log if "loss" in record]
    assert len(steps) == 2
    assert not any("auxiliary_loss" in record for record in steps)
    model = SiameseForCausalLM.from_pretrained(after)
    assert model.stream == "interwoven"


def test_a_frozen_adapter_gives_the_same_hidden_states_in_training_mode() -> None:
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
def test_a_plan_counts_only_the_gate(word_files: Path, tmp_path: Path, peft: str) -> None:
    before = run(word_files, tmp_path, f"peft={peft}", "trainer.num_epochs=1", "method=peft")
    plans = [
        make_plan(config(*word_overrides(word_files, EPOCHS, f"peft={peft}", "mode=plan", *more)))
        for more in ([], [f"frozen_adapter={before}"])
    ]
    assert plans[1].trainable == {"adapter": 0, "gate": plans[0].trainable["gate"]}
    assert str(before) in plans[1].settings["peft"]
    sizes = [{p.name: p.size for p in plan.memory["memory per GPU, training"]} for plan in plans]
    assert sizes[1]["optimizer"] < sizes[0]["optimizer"]
    assert sizes[1]["activations"] < sizes[0]["activations"]


@pytest.mark.slow
def test_zero_stage_3_saves_the_complete_adapter(
    word_files: Path, source: Path, frozen_run: tuple[Path, Any], tmp_path: Path
) -> None:
    pytest.importorskip("deepspeed")
    given = word_overrides(
        word_files, EPOCHS, "peft.lora_dropout=0.3", f"frozen_adapter={source}", f"run_dir={tmp_path}"
    )
    start_run(config(*given, "engine=zero3", "engine.device=cpu", "engine.nproc_per_node=2"), runs_root=source.parent)
    assert (tmp_path / ADAPTER).read_bytes() == (source / ADAPTER).read_bytes()
    expected = load_file(frozen_run[0] / GATE)
    for name, value in load_file(tmp_path / GATE).items():
        assert (value - expected[name]).abs().max() < 5e-3, name  # rounding, through Adam
