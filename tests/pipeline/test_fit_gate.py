"""`imsm fit-gate` on a finished run: what it takes from the run, and the run that it makes."""

from __future__ import annotations

from pathlib import Path

import pytest

from imsm.config.schema import RunConfig
from imsm.pipeline.fit_gate import MAX_EXAMPLES, fit_gate_config, saved_config
from imsm.utils.errors import UserError
from tests.helpers.word_run import run_words

SMALL = ("trainer.num_epochs=3", "rehearsal.num_texts=8", "rehearsal.max_tokens=6", "rehearsal.exclude_tests=[]")


@pytest.fixture(scope="module")
def source(word_files: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished PEFT run."""
    return run_words(word_files, tmp_path_factory.mktemp("fit"), "seed=3", method="peft")


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
