"""One GPU per run where the plan's estimate fits, else all; the GPUs are shared without overlap."""

from __future__ import annotations

import pytest

from imsm.config.schema import RunConfig
from imsm.pipeline.plan import placement
from imsm.pipeline.plan.placement import GpuPool, gpus_of_run, makespan, sweep_time
from imsm.pipeline.plan.plan import make_plan
from tests.helpers.config import config

LLAMA3 = ("backbone=llama3", "peft=lora", "data=gsm8k")
GB = 10**9


@pytest.fixture(autouse=True)
def memory(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Set the memory of the GPUs, in a list of one number."""
    size = [80 * GB]
    monkeypatch.setattr(placement, "gpu_memory", lambda: size[0])
    monkeypatch.setattr(placement, "_known", {})
    return size


@pytest.mark.parametrize("method", ["original", "peft", "imsm"])
def test_llama3_8b_has_one_gpu_of_80_gb_and_all_of_eight_small_ones(method: str, memory: list[int]) -> None:
    assert gpus_of_run(config(*LLAMA3, f"method={method}"), gpus=8) == 1
    memory[0] = 12 * GB
    assert gpus_of_run(config(*LLAMA3, f"method={method}", "seed=1"), gpus=8) == 1  # as for another seed
    placement._known.clear()
    assert gpus_of_run(config(*LLAMA3, f"method={method}"), gpus=8) == 8


def test_a_larger_micro_batch_may_need_all_gpus(memory: list[int]) -> None:
    memory[0] = 40 * GB
    assert gpus_of_run(config(*LLAMA3, "trainer.micro_batch_size=2"), gpus=8) == 1
    assert gpus_of_run(config(*LLAMA3, "trainer.micro_batch_size=16"), gpus=8) == 8


def test_a_large_evaluation_batch_needs_no_second_gpu(memory: list[int]) -> None:
    # it is halved
    assert gpus_of_run(config(*LLAMA3, "evaluation.batch_size=100000"), gpus=8) == 1


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["engine.device=cpu"], 0),
        (["engine=zero2", "engine.nproc_per_node=2"], 2),
        (["engine=zero2", "engine.nproc_per_node=16"], 8),
        (["engine=zero2", "engine.nnodes=2", "engine.nproc_per_node=8"], 8),
        (["engine=single"], 1),
    ],
)
def test_an_engine_that_says_how_many_processes_has_them(
    overrides: list[str], expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(placement, "build_plan_model", None)  # nothing is estimated
    assert gpus_of_run(config(*LLAMA3, *overrides), gpus=8) == expected


def test_without_gpus_or_with_one_nothing_is_estimated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(placement, "build_plan_model", None)
    assert [gpus_of_run(config(*LLAMA3), gpus=count) for count in (0, 1)] == [0, 1]


def test_a_model_of_unknown_size_has_one_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(placement, "build_plan_model", lambda config: (None, ["unknown"]))
    assert gpus_of_run(config(*LLAMA3), gpus=8) == 1


def test_a_pool_gives_each_gpu_to_one_run() -> None:
    pool = GpuPool(["4", "GPU-5f", "7"])
    first, second = pool.take(1), pool.take(2)
    assert first == ["4"] and second == ["GPU-5f", "7"]
    assert pool.take(1) is None
    pool.give_back(second)
    assert pool.take(3) is None and pool.take(2) == ["GPU-5f", "7"]
    assert pool.take(0) == []


def test_a_plan_says_how_a_sweep_places_such_runs(memory: list[int]) -> None:
    gpus = ["mode=plan", *LLAMA3, "engine.device=cuda", "engine.nproc_per_node=8"]
    text = make_plan(config(*gpus)).placement
    assert text is not None and text.startswith(
        "one GPU per run, 8 at once without engine.nproc_per_node; each about "
    )
    memory[0] = 20 * GB
    assert make_plan(config(*gpus)).placement == "all 8 GPUs per run, one run after the other"
    assert make_plan(config("mode=plan", *LLAMA3, "engine.device=cpu")).placement is None
    assert make_plan(config("mode=plan", *LLAMA3, "engine.device=cuda", "engine.nproc_per_node=1")).placement is None


@pytest.mark.parametrize(
    ("jobs", "expected"),
    [
        ([(1, 5.0)] * 8, 5.0),
        ([(1, 5.0)] * 9, 10.0),
        ([(8, 5.0)] * 3, 15.0),
        ([(1, 1.0), (1, 4.0), (8, 2.0), (1, 1.0)], 7.0),  # the third waits for the second, the fourth for the third
        ([(4, 3.0), (4, 3.0), (4, 1.0)], 4.0),
    ],
)
def test_jobs_start_in_their_order_on_free_gpus(jobs: list[tuple[int, float]], expected: float) -> None:
    assert makespan(jobs, 8) == expected


def test_the_time_of_a_sweep_is_that_of_its_runs_on_the_gpus(
    memory: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    estimated: list[str] = []

    def seconds(config: RunConfig, *, gpus: int) -> float:
        estimated.append(config.peft.name)
        return 3600.0

    monkeypatch.setattr(placement, "_seconds", seconds)
    runs = [config(*LLAMA3, f"seed={seed}") for seed in range(9)]
    assert sweep_time(runs, gpus=8) == "9 runs on 1 of 8 GPUs each: about 2h 00m, within a factor of 3"
    assert estimated == ["lora"]  # seeds do not differ
    assert sweep_time([*runs, config("engine.device=cpu")], gpus=8) is None


def test_the_seconds_of_a_run_are_those_of_its_plan(memory: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(placement, "topology_of", None)  # one GPU is no group
    one = placement._seconds(config(*LLAMA3), gpus=8)
    assert one is not None and 600 < one < 36_000
    assert placement._seconds(config("task_sequence=[gsm8k,mrpc]"), gpus=8) is None
