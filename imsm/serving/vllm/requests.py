"""Arguments of a request: which stream answers, and whether the gate is recorded.

    extra_args={"imsm_stream": "tuned"}           original, tuned or interwoven
    extra_args={"imsm_gate": 0.3}                 a constant weight of the original in place of the gate
    extra_args={"imsm_record": "any name"}        record the gate of each generated token under this name

In the HTTP API these are ``vllm_xargs``. vLLM reports to its logits processors which request is at which place of a
batch; `RequestTable` is one that changes no logits and keeps this for the model.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from vllm import SamplingParams
from vllm.config import VllmConfig
from vllm.v1.sample.logits_processor import BatchUpdate, LogitsProcessor, process_dict_updates

STREAMS = {"original": 1.0, "tuned": 0.0, "interwoven": math.nan}
"""Weight of the original in each stream; NaN for that of the gate."""
_PREFIX = "imsm_"


@dataclass(frozen=True)
class Request:
    """What the model needs of a request.

    Attributes:
        prompt_length: number of tokens of the prompt.
        weight: constant weight of the original; NaN for the gate's; None for the model's default.
        record: name under which the gate is recorded; None: not at all.
    """

    prompt_length: int
    weight: float | None = None
    record: str | None = None


def read_arguments(extra_args: dict[str, Any] | None) -> dict[str, Any]:
    """Return ``weight`` and ``record`` of `Request`.

    Raises:
        ValueError: an unknown argument or a wrong value.
    """
    given = {name: value for name, value in (extra_args or {}).items() if name.startswith(_PREFIX)}
    stream, gate, record = (given.pop(f"{_PREFIX}{name}", None) for name in ("stream", "gate", "record"))
    if given:
        raise ValueError(f"{min(given)}: unknown; choose imsm_stream, imsm_gate or imsm_record")
    if stream is not None and stream not in STREAMS:
        raise ValueError(f"imsm_stream={stream!r}: must be one of {', '.join(STREAMS)}")
    if gate is not None and not (isinstance(gate, int | float) and 0 <= gate <= 1):
        raise ValueError(f"imsm_gate={gate!r}: must be a number in [0, 1]")
    if gate is not None and stream not in (None, "interwoven"):
        raise ValueError(f"imsm_gate={gate!r}: only with imsm_stream=interwoven")
    if record is not None and not (isinstance(record, str) and 0 < len(record) <= 200):
        raise ValueError("imsm_record: must be a text of 1 to 200 characters")
    weight = STREAMS.get(stream) if gate is None else float(gate)
    return {"weight": weight, "record": record}


class RequestTable(LogitsProcessor):
    """The requests of the current batch, by their place in it."""

    has_gate: ClassVar[bool] = True
    of_engine: ClassVar[dict[str, RequestTable]] = {}
    """The tables of this process, by vLLM's instance id."""

    def __init__(self, vllm_config: VllmConfig, device: torch.device, is_pin_memory: bool) -> None:
        self.requests: dict[int, Request] = {}
        self.of_engine[vllm_config.instance_id] = self

    @classmethod
    def validate_params(cls, sampling_params: SamplingParams) -> None:
        """Reject wrong arguments when a request arrives."""
        arguments = read_arguments(sampling_params.extra_args)
        weight = arguments["weight"]
        if not cls.has_gate and (arguments["record"] or (weight is not None and math.isnan(weight))):
            raise ValueError("imsm_stream, imsm_record: the run has no gate; choose imsm_stream original or tuned")

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        """Follow the changes of the batch."""
        process_dict_updates(self.requests, batch_update, _request)

    def apply(self, logits: torch.Tensor) -> torch.Tensor:
        """Return the logits unchanged."""
        return logits

    def is_argmax_invariant(self) -> bool:
        """Return True: no logit changes."""
        return True


class RequestTableWithoutGate(RequestTable):
    """The table of a model without a gate, which rejects arguments for one."""

    has_gate = False


def _request(params: SamplingParams, prompt: list[int] | None, _: list[int]) -> Request:
    if prompt is None:
        raise ValueError("prompt: must be given as text or tokens")
    return Request(len(prompt), **read_arguments(params.extra_args))
