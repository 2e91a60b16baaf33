"""Memory and names of the device."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch

from imsm.distributed.gpus import check_gpus_free, visible_gpus
from imsm.training.engines.single_device import peak_memory, reset_peak_memory
from imsm.training.hidden_state_store import make_cache_key
from imsm.utils.machine import describe_machine
from imsm.utils.oom import AdaptiveBatchSize, is_out_of_memory
from tests.gpu.tiny import DEVICE, examples, needs_gpu

pytestmark = pytest.mark.gpu


@needs_gpu
def test_lack_of_gpu_memory_is_recognized_and_batches_are_halved() -> None:
    free, _ = torch.cuda.mem_get_info()

    def compute(indices: Sequence[int]) -> list[int]:
        held = torch.empty(int(free * 0.3) * len(indices), dtype=torch.uint8, device=DEVICE)
        return [held.numel()] * len(indices)

    adaptive = AdaptiveBatchSize(compute, what="prompts", key="evaluation.batch_size")
    assert len(adaptive(range(8))) == 8
    assert adaptive.max_batch_size in (1, 2)
    with pytest.raises(RuntimeError) as raised:
        torch.empty(2 * free, dtype=torch.uint8, device=DEVICE)
    assert is_out_of_memory(raised.value)


@needs_gpu
def test_a_device_without_index_is_measured_and_named() -> None:
    reset_peak_memory(DEVICE)
    held = torch.ones(1 << 20, device=DEVICE)
    peak = peak_memory(DEVICE)
    assert peak is not None and peak >= held.nbytes
    options = {"backbone": "", "dtype": "", "attention": None, "pooling": "mean"}
    name = torch.cuda.get_device_name()
    assert make_cache_key(examples(), device=DEVICE, **options).device == name  # type: ignore[arg-type]
    assert describe_machine(DEVICE)["device_name"] == name


@needs_gpu
def test_the_gpus_of_this_process_are_counted() -> None:
    assert visible_gpus() >= 1
    check_gpus_free(num_processes=0, engine="single")


def test_the_machine_is_described() -> None:
    described = describe_machine(DEVICE)
    assert described["device"] == DEVICE.type and described["device_name"] and described["threads"] >= 1
