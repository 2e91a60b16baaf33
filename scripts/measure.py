"""What `bench_step.py` measures: training steps, decoding steps, and a training's peak memory.

Run as a program it measures the memory of one arm: peaks of two arms in one process would mix.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig, StoppingCriteria, StoppingCriteriaList

from imsm.adapters.lora import lora
from imsm.assemble import assemble
from imsm.data.tokenise import TokenisedExample
from imsm.siamese.memory_bank import bank_in_memory
from imsm.siamese.model import SiameseForCausalLM
from imsm.training.local import LocalEngine
from imsm.training.optimizer import build_optimizer, build_schedule
from imsm.training.step import on_device


@dataclass(frozen=True, kw_only=True)
class Setup:
    """What is measured: a backbone, LoRA on some of its modules, the gate, and the batch.

    ``backbone`` holds the arguments of `load_backbone` but dtype, ``gate`` those of `build_gate`;
    ``batch`` rows of ``prompt_tokens`` and ``answer_tokens`` (the last is the end of the text).
    """

    backbone: dict[str, Any]
    target_modules: list[str]
    gate: dict[str, Any]
    rank: int
    batch: int
    prompt_tokens: int
    answer_tokens: int
    device: str


def build(setup: Setup, *, stream: str, dtype: str) -> SiameseForCausalLM:
    """A model whose ``stream`` answers; "tuned" is plain PEFT and has no gate."""
    adapter = lora(
        target_modules=setup.target_modules, rank=setup.rank, alpha=setup.rank, dropout=0.0
    )
    model = assemble(
        backbone={**setup.backbone, "dtype": dtype},
        adapter=adapter,
        gate=setup.gate if stream == "interwoven" else None,
        pooling="mean",
        stream=stream,
        seed=0,
    )
    return model.to(setup.device)


def random_batch(setup: Setup, *, vocabulary: int) -> list[TokenisedExample]:
    """Random tokens in the shape of a task's examples."""
    generator = torch.Generator().manual_seed(0)
    size = (setup.batch, setup.prompt_tokens + setup.answer_tokens)
    rows = torch.randint(min(16, vocabulary // 2), vocabulary, size, generator=generator).tolist()
    cut = setup.prompt_tokens
    return [
        TokenisedExample(id=str(i), prompt_ids=tuple(row[:cut]), answer_ids=tuple(row[cut:]))
        for i, row in enumerate(rows)
    ]


def train_step(
    model: SiameseForCausalLM, setup: Setup, *, banked: bool = False
) -> Callable[[], None]:
    """One optimizer step on one batch, as a function without arguments.

    Args:
        model: what is trained.
        setup: of the batch.
        banked: whether it reads a memory bank, which is filled here.
    """
    items = random_batch(setup, vocabulary=model.config.vocab_size)
    bank = bank_in_memory(model, items, pad_id=0) if banked else None
    device = torch.device(setup.device)
    optimizer = build_optimizer(
        model, name="adamw", learning_rate=3e-4, gate_learning_rate=None, weight_decay=0.0
    )
    schedule = build_schedule(optimizer, name="constant", warmup_ratio=0.0, steps=100)
    engine = LocalEngine(
        model,
        optimizer=optimizer,
        schedule=schedule,
        clip_norm=1.0,
        device=device,
    )

    def step() -> None:
        model.train()
        batch = on_device(device, items, pad_id=0, bank=bank)
        engine.backward(model(**batch).loss, last=True)
        engine.step()

    return step


def interleaved(
    arms: Mapping[str, Callable[[], list[float]]], *, rounds: int
) -> dict[str, list[float]]:
    """All arms by turns, so that a busy moment of the machine meets all; a first round is thrown.

    Args:
        arms: each returns the seconds that it measured.
        rounds: how many are kept.
    """
    seconds: dict[str, list[float]] = {name: [] for name in arms}
    for round_ in range(rounds + 1):
        for name, measured in arms.items():
            found = measured()
            if round_:
                seconds[name] += found
    return seconds


def now(device: str) -> float:
    """Seconds, when the device has done all that it was given."""
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    return time.perf_counter()


def timed(run: Callable[[], None], *, device: str) -> Callable[[], list[float]]:
    """``run`` with its seconds as result."""

    def measured() -> list[float]:
        start = now(device)
        run()
        return [now(device) - start]

    return measured


class Clock(StoppingCriteria):
    """Never stops; notes when each new token is there."""

    def __init__(self, device: str) -> None:
        self.device = device
        self.times: list[float] = []

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **_: object) -> torch.Tensor:
        """No row is done, (B,)."""
        self.times.append(now(self.device))
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)


def decode(
    generate: Callable[..., torch.Tensor], prompts: torch.Tensor, *, tokens: int, device: str
) -> list[float]:
    """Seconds that each new token took; the first one's include reading the prompt.

    Args:
        generate: a model's.
        prompts: token ids, (B, T).
        tokens: how many new ones; the end of the text does not end it.
        device: where the model is.
    """
    clock = Clock(device)
    config = GenerationConfig(
        do_sample=False, max_new_tokens=tokens, min_new_tokens=tokens, pad_token_id=0
    )
    start = now(device)
    with torch.inference_mode():
        generate(
            input_ids=prompts,
            attention_mask=torch.ones_like(prompts),
            generation_config=config,
            stopping_criteria=StoppingCriteriaList([clock]),
        )
    return [after - before for before, after in pairwise([start, *clock.times])]


def peak_memory(setup: Setup, *, stream: str, dtype: str, steps: int) -> int:
    """Bytes at the peak of some training steps: weights, adapter, optimizer, activations.

    On a CPU it is the process's anonymous memory (files that it maps, libraries above all, are
    not counted, and the weights are moved out of their file); on a GPU the allocator's peak.
    Meant for a process of its own.
    """
    model = build(setup, stream=stream, dtype=dtype)
    for parameter in model.parameters():
        parameter.data = parameter.data.clone()
    step = train_step(model, setup)
    cuda = setup.device.startswith("cuda")
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    else:
        Path("/proc/self/clear_refs").write_text("5")  # sets VmHWM back to what is in use now
    for _ in range(steps):
        step()
    if cuda:
        return torch.cuda.max_memory_allocated()
    return _status("VmHWM") - _status("RssFile")


def _status(key: str) -> int:
    """An entry of this process's status, in bytes (Linux)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        name, _, value = line.partition(":")
        if name == key:
            return int(value.split()[0]) * 1024
    raise KeyError(f"/proc/self/status has no {key}")


def memory_arguments(setup: Setup, *, stream: str, dtype: str, steps: int) -> list[str]:
    """The command line that measures one arm's memory."""
    about = json.dumps({"setup": asdict(setup), "stream": stream, "dtype": dtype, "steps": steps})
    return ["-m", "scripts.measure", about]


def main() -> None:
    """Print the peak of one arm, in bytes."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("about", type=json.loads, help="JSON of memory_arguments()")
    about = parser.parse_args().about
    setup = Setup(**about.pop("setup"))
    print(peak_memory(setup, **about))


if __name__ == "__main__":
    main()
