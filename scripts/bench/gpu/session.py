"""What the rows share: one model for all methods, examples of the tasks' lengths, and timers."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from statistics import median
from typing import Any, Literal

import torch

from imsm.data.tokenization import TokenizedExample
from imsm.models.siamese.model import SiameseForCausalLM
from scripts.bench.timing import now
from scripts.bench.workloads import Setup, build

Task = Literal["gsm8k", "mrpc"]
Method = Literal["peft", "imsm"]
LENGTHS: dict[str, tuple[tuple[int, int, int], tuple[int, int, int]]] = {
    "gsm8k": ((108, 28, 262), (96, 45, 347)),
    "mrpc": ((80, 13, 148), (2, 0, 2)),
}
"""Tokens of prompt and answer of the training data: mean, standard deviation, maximum."""
_TINY = 8
"""Divisor of the lengths of `--tiny`."""
TINY_SHAPE = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 1,
    "vocab_size": 512,
}


@dataclass
class Session:
    """One model whose ``stream`` selects IMSM or PEFT, so that one copy of the weights serves both.

    Args:
        setup: backbone, adapter, precision and device.
        tiny: whether shapes and rounds are those of a test.
        rounds: measurements per median.
    """

    setup: Setup
    tiny: bool = False
    rounds: int = 5

    @cached_property
    def model(self) -> SiameseForCausalLM:
        """The model, built at the first use."""
        return build(self.setup, stream="interwoven")

    @property
    def is_gpu(self) -> bool:
        """Whether the device is a GPU."""
        return self.setup.device.startswith("cuda")

    @property
    def device(self) -> torch.device:
        """The device."""
        return torch.device(self.setup.device)

    @property
    def vocab_size(self) -> int:
        """Number of token ids."""
        assert self.setup.shape is not None
        return int(self.setup.shape["vocab_size"])

    def examples(self, task: Task, count: int) -> list[TokenizedExample]:
        """Return random examples whose lengths are spread as those of a task."""
        generator = torch.Generator().manual_seed(1)

        def draw(length: int) -> tuple[int, ...]:
            return tuple(torch.randint(16, self.vocab_size, (length,), generator=generator).tolist())

        prompts, answers = (self._lengths(*spread, count, generator) for spread in LENGTHS[task])
        return [
            TokenizedExample(id=str(i), prompt_ids=draw(prompt), answer_ids=draw(answer))
            for i, (prompt, answer) in enumerate(zip(prompts, answers, strict=True))
        ]

    def mean_shape(self, task: Task) -> Setup:
        """Return the setup with a task's mean lengths, for trainers that get one shape."""
        prompt, answer = (max(2, mean // self._scale) for mean, _, _ in LENGTHS[task])
        return replace(self.setup, prompt_tokens=prompt, answer_tokens=answer)

    def timed(self, run: Callable[[], object], *, rounds: int | None = None, warm_up: int = 2) -> dict[str, float]:
        """Return the median and least milliseconds of ``run``, and the median of this process's CPU time."""
        return self.compared({"": run}, rounds=rounds, warm_up=warm_up)[""]

    def compared(
        self, runs: Mapping[str, Callable[[], object]], *, rounds: int | None = None, warm_up: int = 2
    ) -> dict[str, dict[str, float]]:
        """Return what `timed` does, of several that alternate, so that a changing clock rate affects all."""
        wall: dict[str, list[float]] = {name: [] for name in runs}
        host: dict[str, list[float]] = {name: [] for name in runs}
        for round_ in range(warm_up + (rounds or self.rounds)):
            for name, run in runs.items():
                started, host_started = now(self.setup.device), time.process_time()
                run()
                # before waiting for the device, which may spin
                host_time = time.process_time() - host_started
                wall_time = now(self.setup.device) - started
                if round_ >= warm_up:
                    wall[name].append(1e3 * wall_time)
                    host[name].append(1e3 * host_time)
        return {
            name: {"ms": median(times), "ms_min": min(times), "host_ms": median(host[name])}
            for name, times in wall.items()
        }

    def peak_gb(self, run: Callable[[], object]) -> float | None:
        """Return the allocator's peak while ``run`` runs; None on a CPU."""
        if not self.is_gpu:
            return None
        torch.cuda.reset_peak_memory_stats()
        run()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() / 1e9

    @contextmanager
    def method(self, name: Method) -> Iterator[None]:
        """Select a method in the ``with`` block; "peft" is the tuned stream, which has no gate."""
        before = self.model.stream
        self.model.stream = "tuned" if name == "peft" else "interwoven"
        try:
            yield
        finally:
            self.model.stream = before

    @property
    def _scale(self) -> int:
        return _TINY if self.tiny else 1

    def _lengths(self, mean: int, spread: int, most: int, count: int, generator: torch.Generator) -> list[int]:
        drawn = (mean + spread * torch.randn(count, generator=generator)).clamp(mean // 3, most)
        return [max(2, int(length) // self._scale) for length in drawn]


def total_tokens(examples: Sequence[TokenizedExample]) -> int:
    """Return the tokens of all prompts and answers."""
    return sum(len(each.prompt_ids) + len(each.answer_ids) for each in examples)


Measured = dict[str, Any]
"""What a row measured: JSON types."""
