"""Rows about the machine and the model: limits of the hardware, loading, equal bits before the first update."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from imsm.data.batching import collate_training
from imsm.models.siamese.inputs import decoder_inputs
from scripts.bench.gpu.session import Measured, Session, Task
from scripts.bench.timing import now


def machine(session: Session) -> Measured:
    """Return versions, the rates of products and copies, and the time of launching a kernel."""
    import peft
    import transformers

    device = session.setup.device
    found: Measured = {"python": platform.python_version(), "torch": torch.__version__, "cores": os.cpu_count()}
    found |= {"transformers": transformers.__version__, "peft": peft.__version__, "threads": torch.get_num_threads()}
    side = 256 if session.tiny else 8192
    left, right = (torch.randn(side, side, dtype=torch.bfloat16, device=device) for _ in range(2))
    found["matrix_tflops"] = 2 * side**3 / session.timed(lambda: left @ right)["ms"] / 1e9
    source = torch.ones(2**20 if session.tiny else 2**30, dtype=torch.bfloat16, device=device)
    target = torch.empty_like(source)
    found["copy_gb_s"] = 2 * source.nbytes / session.timed(lambda: target.copy_(source))["ms"] / 1e6
    found["launch_us"] = _launch_us(device)
    if session.is_gpu:
        found |= {"gpu": torch.cuda.get_device_name(), "cuda": torch.version.cuda, "to_device_gb_s": _uploads(session)}
    return found


def build_model(session: Session) -> Measured:
    """Build the model that all later rows use."""
    started = now(session.setup.device)
    streams = session.model.streams
    return {
        "seconds": now(session.setup.device) - started,
        "batch_both": streams.batch_both,
        "adapted_layers": len(streams.layers),
        "allocated_gb": torch.cuda.memory_allocated() / 1e9 if session.is_gpu else None,
    }


def first_step_bits(session: Session) -> Measured:
    """Compare both streams before the first update, with and without gradients, as in the first training steps."""
    found: Measured = {}
    tasks: dict[Task, int] = {"mrpc": 16, "gsm8k": 4}
    for task, count in tasks.items():
        batch = collate_training(session.examples(task, count), pad_id=0)
        batch = {name: value.to(session.device) for name, value in batch.items()}
        inputs = decoder_inputs(batch["input_ids"], attention_mask=batch["attention_mask"])
        session.model.train()
        with _untrained(session.model):
            with torch.no_grad():
                original = session.model.streams.hidden_states(inputs, stream="original", cache=None)
            tuned = session.model.streams.hidden_states(inputs, stream="tuned", cache=None).detach()
        is_token = batch["attention_mask"].bool()
        difference = (original[is_token].float() - tuned[is_token].float()).abs().max()
        found[task] = {"equal": torch.equal(original[is_token], tuned[is_token]), "difference": float(difference)}
    return found


@contextmanager
def _untrained(model: torch.nn.Module) -> Iterator[None]:
    """Set LoRA's second matrices to zero, as they begin; other rows may have trained them."""
    matrices = [parameter for name, parameter in model.named_parameters() if "lora_B" in name]
    values = [matrix.data for matrix in matrices]
    for matrix in matrices:
        matrix.data = torch.zeros_like(matrix)
    try:
        yield
    finally:
        for matrix, value in zip(matrices, values, strict=True):
            matrix.data = value


def _launch_us(device: str, count: int = 2000) -> float:
    """Return the microseconds in which Python queues an addition to a few elements."""
    values = torch.ones(8, device=device)
    now(device)
    started = time.perf_counter()
    for _ in range(count):
        values.add_(1)
    return 1e6 * (time.perf_counter() - started) / count


def _uploads(session: Session) -> dict[str, float]:
    """Return GB/s from host memory to the device."""
    pageable = torch.empty(2**24, dtype=torch.bfloat16)
    target = torch.empty_like(pageable, device=session.device)

    def upload(source: torch.Tensor) -> Callable[[], object]:
        return lambda: target.copy_(source, non_blocking=True)

    sources = {"pageable": pageable, "pinned": pageable.pin_memory()}
    return {name: each.nbytes / session.timed(upload(each))["ms"] / 1e6 for name, each in sources.items()}
