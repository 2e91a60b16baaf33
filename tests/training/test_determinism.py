"""Deterministic algorithms: on in training steps alone, with an error that names the key."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from imsm.training.determinism import deterministic_algorithms, set_deterministic_environment
from imsm.utils.errors import UserError
from tests.training.tiny_run import TinyRun, assert_equal_trainables


def test_they_are_on_in_the_block_only() -> None:
    for enabled in (False, True):
        with deterministic_algorithms(enabled):
            assert torch.are_deterministic_algorithms_enabled() == enabled
        assert not torch.are_deterministic_algorithms_enabled()


def test_the_setting_of_the_caller_is_restored() -> None:
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        with deterministic_algorithms(True):
            assert not torch.is_deterministic_algorithms_warn_only_enabled()
        assert torch.is_deterministic_algorithms_warn_only_enabled()
    finally:
        torch.use_deterministic_algorithms(False)


def test_an_operation_without_such_an_algorithm_is_a_user_error() -> None:
    message = r"^trainer.deterministic=true: put_.* does not have a det.*; omit it"
    with pytest.raises(UserError, match=message), deterministic_algorithms(True):
        torch.zeros(3).put_(torch.tensor([1, 1]), torch.ones(2))
    assert not torch.are_deterministic_algorithms_enabled()
    with pytest.raises(RuntimeError, match="something else"), deterministic_algorithms(True):
        raise RuntimeError("something else")


def test_the_environment_of_the_user_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")
    monkeypatch.setenv("FLASH_ATTENTION_DETERMINISTIC", "")  # so that it is restored
    monkeypatch.delenv("FLASH_ATTENTION_DETERMINISTIC")
    set_deterministic_environment()
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":16:8"
    assert os.environ["FLASH_ATTENTION_DETERMINISTIC"] == "1"


def test_gradients_use_them_updates_and_evaluation_do_not(tmp_path: Path) -> None:
    """On a CPU the same algorithms run anyway: the trained values are equal."""
    run, plain = TinyRun(tmp_path / "run"), TinyRun(tmp_path / "plain")
    is_on = torch.are_deterministic_algorithms_enabled
    in_forward, in_backward, in_update, at_save_step = [], [], [], []
    run.model.register_forward_pre_hook(lambda *_: in_forward.append(is_on()))
    next(p for p in run.model.parameters() if p.requires_grad).register_hook(lambda _: in_backward.append(is_on()))
    run.engine.optimizer.register_step_pre_hook(lambda *_: in_update.append(is_on()))

    def measure(step: int) -> dict[str, float]:
        at_save_step.append(is_on())
        return {}

    run.deterministic, run.at_save_step = True, measure
    run.train()
    plain.train()
    assert set(in_forward) == set(in_backward) == {True}
    assert set(in_update) == {False} and at_save_step == [False]
    assert_equal_trainables(run, plain)
