"""Counting the host's reads of device values on a CPU."""

from __future__ import annotations

import pytest
import torch

from imsm.models.siamese import labels
from scripts.bench.syncs import device_reads, micro_batch_reads


@pytest.fixture
def layer() -> torch.nn.Linear:
    return torch.nn.Linear(3, 3)


def test_reads_of_what_a_layer_computed_are_counted(layer: torch.nn.Linear) -> None:
    def run() -> None:
        output = layer(torch.ones(2, 3))
        output.sum().item()
        output[output > 0]
        output.nonzero()
        output[torch.tensor([1])]  # a number, whose size is known

    assert device_reads(layer, run) == {"aten::_local_scalar_dense": 1, "aten::index": 1, "aten::nonzero": 1}


def test_reads_of_the_hosts_tensors_are_not_counted(layer: torch.nn.Linear) -> None:
    def run() -> None:
        for _ in range(50):
            # their memory is reused
            layer(torch.ones(2, 3))
            bool(torch.tensor([1, 0, 1]).any())

    assert not device_reads(layer, run)


def test_a_tensor_is_on_the_device_once_it_was_copied(layer: torch.nn.Linear) -> None:
    def run() -> None:
        values = torch.tensor([1, 0])
        values.nonzero()
        labels.to_device(values, torch.device("cpu")).nonzero()

    assert device_reads(layer, run).total() == 1


def test_reads_in_the_backward_pass_are_counted(layer: torch.nn.Linear) -> None:
    def run() -> None:
        output = layer(torch.ones(2, 3))
        output.register_hook(lambda grad: grad * grad.sum().item())
        output.sum().backward()

    assert device_reads(layer, run).total() == 1


def test_reads_per_step_are_not_those_of_a_micro_batch(layer: torch.nn.Linear) -> None:
    def step(micro_batches: int) -> None:
        outputs = [layer(torch.ones(1, 3)).sum() for _ in range(micro_batches)]
        outputs[0].item()
        for output in outputs:
            output.item()

    assert micro_batch_reads(layer, step) == 1
