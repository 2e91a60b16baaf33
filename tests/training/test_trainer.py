"""The training loop: what it trains, how it stops and how it fails."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from imsm.data.batching import MicroBatching
from imsm.evaluation.generation import generate_responses
from imsm.models.siamese.decoding_session import DecodingSession
from imsm.training.checkpoint import list_checkpoints, read_state
from imsm.training.trainer import BatchPlan
from imsm.utils.errors import RunError
from tests.models.siamese.tiny import tiny_tokenizer
from tests.training.tiny_run import NUM_TOKENS, TinyRun, assert_equal_trainables, tiny_examples

OUT_OF_MEMORY = "CUDA out of memory. Tried to allocate 2.00 GiB."


def test_steps_of_a_batch_plan() -> None:
    plan = BatchPlan(num_epochs=3, global_batch_size=5, micro_batching=MicroBatching(size=5), seed=1)
    batches = plan.batches(tiny_examples())
    assert plan.num_steps(12) == len(batches) == 9
    assert [[len(group) for group in groups] for groups in batches[:3]] == [[5], [5], [2]]
    assert batches[:3] != batches[3:6]


def test_carry_over_adds_the_last_micro_batches_of_an_epoch_to_the_next_step() -> None:
    """12 examples are 6 micro-batches of 2, of which a step takes 4."""
    plan = BatchPlan(
        num_epochs=4,
        global_batch_size=8,
        micro_batching=MicroBatching(size=2),
        seed=1,
        loss_group_size=2,
        carry_over=True,
    )
    batches = plan.batches(tiny_examples())
    assert [len(groups) for groups in batches] == [4, 6, 6, 6]
    assert plan.num_steps(12) == 4 and plan.num_scheduled_steps(12) == 6
    used = [sorted(index for group in groups for index in group) for groups in batches]
    assert all(len(set(indices)) < len(indices) for indices in used[1:])  # from two epochs
    whole = BatchPlan(
        num_epochs=4, global_batch_size=8, micro_batching=MicroBatching(size=2), seed=1, loss_group_size=2
    )
    assert [len(groups) for groups in whole.batches(tiny_examples())] == [4, 2] * 4


@pytest.mark.parametrize("carry_over", [True, False])
def test_a_resumed_run_with_losses_per_micro_batch_is_bit_equal(tmp_path: Path, carry_over: bool) -> None:
    def run(folder: str) -> TinyRun:
        built = TinyRun(tmp_path / folder, num_epochs=4)
        built.batch_plan = BatchPlan(
            num_epochs=4,
            global_batch_size=8,
            micro_batching=MicroBatching(size=2),
            seed=7,
            loss_group_size=2,
            carry_over=carry_over,
        )
        return built

    full, first = run("full"), run("parts")
    full.train()
    first.stop_after = 2
    with pytest.raises(KeyboardInterrupt):
        first.train()
    second = run("parts")
    second.train()
    assert first.losses + second.losses == full.losses
    assert_equal_trainables(second, full)


@pytest.mark.parametrize("method", ["lora_with_dropout", "adalora", "ia3", "dora", "loramoe"])
def test_a_resumed_run_is_bit_equal(tmp_path: Path, method: str) -> None:
    optimizer = "adafactor" if method == "ia3" else "adamw"
    full = TinyRun(tmp_path / "full", method=method, optimizer=optimizer)
    full.train()
    first = TinyRun(tmp_path / "parts", method=method, optimizer=optimizer)
    first.stop_after = 3
    with pytest.raises(KeyboardInterrupt):
        first.train()
    assert len(first.losses) == 3
    second = TinyRun(tmp_path / "parts", method=method, optimizer=optimizer)
    summary = second.train()
    assert summary.tokens == 2 * NUM_TOKENS
    assert summary.final_loss == full.losses[-1]
    assert first.losses + second.losses == full.losses
    assert_equal_trainables(second, full)


def test_only_adapter_and_gate_are_trained(tmp_path: Path) -> None:
    run = TinyRun(tmp_path, num_epochs=6)
    before = {name: p.detach().clone() for name, p in run.model.named_parameters()}
    summary = run.train()
    for name, parameter in run.model.named_parameters():
        assert torch.equal(parameter, before[name]) != parameter.requires_grad, name
    assert sum(run.losses[-3:]) < sum(run.losses[:3])
    assert summary.steps == 18
    assert summary.tokens == 6 * NUM_TOKENS
    assert not run.model.training


def test_a_non_finite_loss_stops_training_and_saves_the_last_good_state(tmp_path: Path) -> None:
    run = TinyRun(tmp_path, method="lora")
    original_step = run.engine.step
    good: dict[str, torch.Tensor] = {}

    def step() -> float:
        norm = original_step()
        if len(run.losses) == 1:  # after the second step, break a frozen weight that the third one uses
            good.update({k: v.clone() for k, v in run.engine.trainable_state_dict().items()})
            with torch.no_grad():
                run.model.backbone.lm_head.weight[5] = float("inf")
        return norm

    run.engine.step = step  # type: ignore[method-assign]
    with pytest.raises(RunError, match=r"the loss of step 3 is (nan|inf).*last good checkpoint.*learning_rate"):
        run.train()
    newest = list_checkpoints(run.folder)[0]
    assert read_state(newest)["training_state"]["step"] == 2
    saved = load_file(newest / "trainables.safetensors")
    assert all(torch.equal(saved[name], value) for name, value in good.items())


def test_out_of_memory_names_settings_to_lower_and_saves_the_finished_steps(tmp_path: Path) -> None:
    run = TinyRun(tmp_path, method="lora")
    backward = run.engine.backward

    def failing_backward(loss: torch.Tensor, *, last: bool) -> None:
        if len(run.losses) == 2:
            raise torch.OutOfMemoryError(OUT_OF_MEMORY)
        backward(loss, last=last)

    run.engine.backward = failing_backward  # type: ignore[method-assign]
    with pytest.raises(RunError, match=r"out of memory at step 3 .*trainer\.micro_batch_size=2, .*checkpoint"):
        run.train()
    run.engine.backward = backward  # type: ignore[method-assign]
    assert run.train().steps == 6
    full = TinyRun(tmp_path / "full", method="lora")
    full.train()
    assert run.losses == full.losses


def test_out_of_memory_during_the_update_keeps_only_the_last_checkpoint(tmp_path: Path) -> None:
    run = TinyRun(tmp_path, method="lora")
    run.save_after = 1
    original_step = run.engine.step

    def partial_step() -> float:
        if len(run.losses) == 2:
            with torch.no_grad():
                next(p for p in run.model.parameters() if p.requires_grad).add_(1)
            raise torch.OutOfMemoryError(OUT_OF_MEMORY)
        return original_step()

    run.engine.step = partial_step  # type: ignore[method-assign]
    with pytest.raises(RunError, match=r"out of memory at step 3 .*last checkpoint is .*step-0*1"):
        run.train()
    assert len(list_checkpoints(run.folder)) == 1
    resumed, full = TinyRun(tmp_path, method="lora"), TinyRun(tmp_path / "full", method="lora")
    resumed.train()
    full.train()
    assert run.losses == full.losses[:2]
    assert resumed.losses == full.losses[1:]


def test_other_errors_of_a_step_are_not_changed(tmp_path: Path) -> None:
    run = TinyRun(tmp_path)

    def fail(**inputs: object) -> None:
        raise RuntimeError("shapes differ")

    run.engine.forward = fail  # type: ignore[method-assign, assignment]
    with pytest.raises(RuntimeError, match=r"^shapes differ$"):
        run.train()


def test_an_interrupt_stops_the_computation_of_a_cache(tmp_path: Path) -> None:
    run = TinyRun(tmp_path)

    def get_cache() -> None:
        os.kill(os.getpid(), signal.SIGINT)
        pytest.fail("not interrupted")

    with pytest.raises(KeyboardInterrupt):
        run.train(get_cache=get_cache)
    assert run.saved_steps() == [2]
    run.train()
    full = TinyRun(tmp_path / "full")
    full.train()
    assert run.losses == full.losses


def test_the_cache_is_requested_from_the_third_step_on(tmp_path: Path) -> None:
    run = TinyRun(tmp_path, method="lora")
    calls: list[int] = []

    def get_cache() -> None:
        calls.append(len(run.losses))

    summary = run.train(get_cache=get_cache)
    assert calls == [2, 3, 4, 5] and not summary.hidden_state_cache
    run = TinyRun(tmp_path / "resumed", method="lora")
    run.stop_after = 3
    with pytest.raises(KeyboardInterrupt):
        run.train()
    run.stop_after, calls = None, []
    run.train(get_cache=get_cache)
    assert calls[0] == 3


def test_sigusr1_saves_a_checkpoint_and_training_continues(tmp_path: Path) -> None:
    run = TinyRun(tmp_path)
    run.save_options = {"save_total_limit": 5}
    run.save_after = 2
    run.train()
    assert len(run.losses) == 6
    assert run.saved_steps() == [6, 2]


def test_measuring_at_save_steps_leaves_the_training_bit_equal(tmp_path: Path) -> None:
    """Also if it generates and draws random numbers; its metrics are logged and saved with the checkpoint."""
    plain = TinyRun(tmp_path / "plain")
    plain.train()
    run = TinyRun(tmp_path / "measured")
    run.save_options = {"save_steps": 2, "save_total_limit": 9}
    modes: list[bool] = []

    def measure(step: int) -> dict[str, float]:
        modes.append(run.model.training)
        session = DecodingSession(run.model, [[5, 6, 7], [8, 9]], pad_id=0, max_new_tokens=4)
        generate_responses(session, tiny_tokenizer(), max_new_tokens=4, stop=None)
        torch.rand(3)
        return {"measured": float(step)}

    run.at_save_step = measure
    run.train()
    assert run.losses == plain.losses
    assert_equal_trainables(run, plain)
    assert modes == [False] * 3
    assert [read_state(path)["metrics"]["measured"] for path in list_checkpoints(run.folder)] == [6, 4, 2]
