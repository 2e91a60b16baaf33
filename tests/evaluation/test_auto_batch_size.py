"""The batch size of a loaded model: unchanged on a CPU, by the memory of all processes on a GPU."""

from __future__ import annotations

import pytest
import torch

from imsm.distributed.context import DistributedContext
from imsm.evaluation import auto_batch_size as module
from imsm.evaluation.auto_batch_size import auto_batch_size, kv_bytes_per_token
from imsm.models.siamese.model import SiameseForCausalLM
from tests.models.siamese.tiny import tiny_siamese

# of one token in 3 layers with 2 heads of 8 numbers, keys and values in float32
TOKEN = 3 * 2 * 2 * 8 * 4


class Ranks(DistributedContext):
    """A process whose neighbour answers with a number of its own."""

    def __init__(self, other: int) -> None:
        super().__init__(rank=0, world_size=1)
        self.other = other

    def all_gather(self, text: str) -> list[str]:
        """Return this process's text and the other's."""
        return [text, str(self.other)]


@pytest.mark.parametrize(("stream", "streams"), [("original", 1), ("tuned", 1), ("interwoven", 2)])
def test_the_caches_of_a_token_are_measured(stream: str, streams: int) -> None:
    model = tiny_siamese()
    model.stream = stream  # type: ignore[assignment]
    assert kv_bytes_per_token(model) == streams * TOKEN


def test_a_cpu_keeps_its_batch_size() -> None:
    options = {"max_new_tokens": 8, "dist_context": DistributedContext()}
    assert auto_batch_size(tiny_siamese, [10] * 1000, **options) == 16


def test_a_gpu_decides_by_its_free_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_siamese()
    monkeypatch.setattr(SiameseForCausalLM, "device", torch.device("cuda"))
    monkeypatch.setattr(module, "kv_bytes_per_token", lambda model: 2 * 131_072)

    def chosen(free: int, *, examples: int = 1000, other: int = 256, sessions: int = 1) -> int:
        monkeypatch.setattr(module, "_free_bytes", lambda device: free)
        lengths = [238] * examples
        return auto_batch_size(
            lambda: model, lengths, max_new_tokens=512, dist_context=Ranks(other), sessions=sessions
        )

    assert chosen(63 * 10**9) == 128
    assert chosen(63 * 10**9, sessions=2) == 64
    assert chosen(63 * 10**9, examples=40) == 32
    # the process with the least memory decides for all
    assert chosen(63 * 10**9, other=16) == 16
