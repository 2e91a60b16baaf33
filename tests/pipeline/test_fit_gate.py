"""`imsm fit-gate` on a finished run: what it takes from the run, and the run that it makes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from imsm.cli.fit_gate import main
from imsm.config.schema import RunConfig
from imsm.evaluation.result import read_result
from imsm.models.siamese.streams import StreamRunner
from imsm.pipeline.fit_gate import MAX_EXAMPLES, fit_gate_config, saved_config, without_effect
from imsm.pipeline.run_status import run_dir_of
from imsm.utils.errors import UserError
from imsm.utils.run_dir import RunDir, read_training
from tests.helpers.word_run import interrupt_at, run_words

ADAPTER = "model/adapter/adapter_model.safetensors"
GATE = "model/gate.safetensors"

SMALL = (
    "trainer.num_epochs=3",
    "trainer.global_batch_size=4",
    "rehearsal.num_texts=8",
    "rehearsal.max_tokens=6",
    "rehearsal.exclude_tests=[]",
)


@pytest.fixture(scope="module")
def source(word_files: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished PEFT run."""
    return run_words(word_files, tmp_path_factory.mktemp("fit"), "seed=3", "trainer.num_epochs=40", method="peft")


@pytest.fixture(scope="module")
def gate_run(source: Path) -> Path:
    """The folder of the run that `imsm fit-gate` makes of it, without a cache."""
    return fit(source, "hidden_state_cache=off")


def fit(source: Path, *overrides: str) -> Path:
    """Run the command; return the folder of its run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("IMSM_RUNS", str(source.parent))
        main([str(source), *SMALL, *overrides])
    return run_dir_of(fitted(source, *SMALL, *overrides), runs_root=source.parent)


def fitted(source: Path, *overrides: str) -> RunConfig:
    return fit_gate_config(source, saved_config(source, config_dir=None), overrides=overrides)


def test_everything_but_the_gate_is_taken_from_the_run(source: Path) -> None:
    saved, config = saved_config(source, config_dir=None), fitted(source)
    for name in ("backbone", "peft", "evaluation", "engine", "seed"):
        assert getattr(config, name) == getattr(saved, name), name
    assert config.data.max_train_examples == MAX_EXAMPLES
    assert config.data.model_copy(update={"max_train_examples": None}) == saved.data
    assert (config.method.name, config.gate.loss, config.trainer.name) == ("imsm", "route", "gate")
    assert (config.rehearsal.source, config.frozen_adapter) == ("self", str(source))


def test_overrides_take_precedence(source: Path) -> None:
    config = fitted(source, "gate=no_query", "gate.loss=lm", "seed=5", "evaluation.limit=2", "data.max_new_tokens=4")
    assert (config.gate.name, config.gate.loss, config.seed) == ("no_query", "lm", 5)
    assert (config.evaluation.limit, config.data.max_new_tokens, config.data.name) == (2, 4, "jsonl")


@pytest.mark.parametrize("override", ["peft=ia3", "backbone.dtype=bfloat16", "method=peft"])
def test_settings_of_the_adapter_cannot_change(source: Path, override: str) -> None:
    with pytest.raises(UserError, match="is part of the finished run"):
        fitted(source, override)


@pytest.mark.parametrize(
    ("override", "problem"),
    [
        ("rehearsal=none", "gate.loss=route: the gate learns its value 1 from texts of the original"),
        ("rehearsal.weight=0", "gate.loss=route: the gate learns its value 1 from texts of the original"),
        ("gate=no_gate", "gate=no_gate is not trained"),
    ],
)
def test_a_route_loss_needs_texts_and_a_gate(source: Path, override: str, problem: str) -> None:
    with pytest.raises(UserError, match=problem):
        fitted(source, override)


def test_the_second_half_of_route_kl_needs_the_kl(source: Path) -> None:
    with pytest.raises(UserError, match=r"set rehearsal\.loss=kl"):
        fitted(source, "gate.loss=route_kl", "rehearsal.loss=ce")


def test_overrides_without_effect_are_found() -> None:
    weight = "trainer.token_weight=dft"
    assert without_effect([weight, "trainer.num_epochs=3"]) == [weight]
    assert without_effect([weight, "gate.loss=route_kl"]) == without_effect(["gate.rank=4"]) == []


def test_the_gate_learns_and_the_adapter_stays(source: Path, gate_run: Path) -> None:
    assert (gate_run / ADAPTER).read_bytes() == (source / ADAPTER).read_bytes()
    log = [json.loads(line) for line in (gate_run / "log.jsonl").open()]
    steps = [record for record in log if "gate_loss" in record]
    assert len(steps) == 6  # eight words in batches of four, three epochs
    first, last = steps[0], steps[-1]
    assert last["gate_loss"] + last["rehearsal_gate_loss"] < first["gate_loss"] + first["rehearsal_gate_loss"]
    assert last["gate_mean"] < last["rehearsal_gate_mean"]
    result = read_result(gate_run)
    assert result["trainable_parameters"]["adapter"] == 0 and result["identity"]["gate"]["loss"] == "route"
    assert "imsm (frozen adapter) − peft" in (gate_run / "report.md").read_text()


@pytest.mark.parametrize("loss", ["route", pytest.param("route_kl", marks=pytest.mark.slow)])
def test_cached_training_runs_no_stream_and_gives_the_same_gate(
    source: Path, gate_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, loss: str
) -> None:
    more = [] if loss == "route" else ["gate.loss=route_kl"]
    uncached = gate_run if loss == "route" else fit(source, *more, "hidden_state_cache=off")
    calls: list[bool] = []
    run_streams = StreamRunner.both_hidden_states

    def counting(self: StreamRunner, *arguments: Any, **keywords: Any) -> Any:
        calls.append(torch.is_grad_enabled())
        return run_streams(self, *arguments, **keywords)

    monkeypatch.setattr(StreamRunner, "both_hidden_states", counting)
    cached = fit(source, *more, "hidden_state_cache=ram", f"run_dir={tmp_path / loss}")
    # two steps run before the cache is read, each with one pass over the batch and one over the texts
    assert sum(calls) == 4
    expected, found = load_file(uncached / GATE), load_file(tmp_path / loss / GATE)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, atol=1e-5, rtol=1e-5)
    assert read_training(RunDir(tmp_path / loss))["hidden_state_cache"] == "ram", cached


def test_an_interrupted_fit_resumes_to_the_same_gate(
    source: Path, tmp_path: Path, gate_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = interrupt_at(monkeypatch, 3)
    given = ("hidden_state_cache=off", f"run_dir={tmp_path / 'again'}")
    with pytest.raises(KeyboardInterrupt):
        fit(source, *given)
    fit(source, *given)
    assert steps == [1, 2, 3, 4, 5, 6]
    assert (tmp_path / "again" / GATE).read_bytes() == (gate_run / GATE).read_bytes()


def test_the_adapters_own_answers_are_the_target(source: Path, tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("after red comes\nafter blue comes\n\nafter pink comes\nafter red comes\nafter grey comes\n")
    before = set(source.parent.iterdir())
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("IMSM_RUNS", str(source.parent))
        main([str(source), *SMALL, "--prompts", str(prompts), "data.test_share=0.3"])
    (made,) = [folder for folder in set(source.parent.iterdir()) - before if (folder / "result.json").is_file()]
    config = saved_config(made, config_dir=None)
    rows = [json.loads(line) for line in Path(str(config.data.local_dir)).read_text().splitlines()]
    assert [row["input"] for row in rows] == [f"after {word} comes" for word in ("red", "blue", "pink", "grey")]
    assert all(row["output"].strip() for row in rows)


def test_prompts_and_data_exclude_each_other(source: Path) -> None:
    with pytest.raises(UserError, match="--prompts: replaces the target data"):
        main([str(source), "--prompts", "gsm8k", "data=gsm8k"])


def test_a_gate_is_fitted_on_an_adapter_from_elsewhere(source: Path, word_files: Path) -> None:
    foreign, base = source / "model" / "adapter", word_files / "backbone"
    data = [f"data.local_dir={word_files / 'data'}", "data.metric=contain", "data.max_new_tokens=3"]
    given = [*SMALL, "data=jsonl", *data, "evaluation.tasks=[target]", "logger=none", "backbone.dtype=float32"]
    before = set(source.parent.iterdir())
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("IMSM_RUNS", str(source.parent))
        main([str(foreign), *given, "--base", str(base)])
    made = [folder for folder in set(source.parent.iterdir()) - before if (folder / "result.json").is_file()]
    (gated,) = [folder for folder in made if read_result(folder)["method"] == "imsm"]
    assert (gated / ADAPTER).read_bytes() == (foreign / "adapter_model.safetensors").read_bytes()


def test_an_imported_adapter_without_data_is_one_message(source: Path, word_files: Path) -> None:
    foreign, base = source / "model" / "adapter", word_files / "backbone"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("IMSM_RUNS", str(source.parent))
        with pytest.raises(UserError, match="give data=NAME, or --prompts"):
            main([str(foreign), "--base", str(base), "backbone.dtype=float32"])
