"""Evaluate with sharded layers: processes with different numbers of forward passes.

A pass through sharded layers gathers the weights of each layer, in which every process takes part. In training all
processes run the same passes. In evaluation they do not, because their responses end at different lengths.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import distributed
from torch.distributed.fsdp import FSDPModule

from imsm.utils.errors import RunError


class LockStep(AbstractContextManager[None]):
    """Inside the ``with`` block, each process runs any number of passes through ``layers``, or none.

    Before a pass, the processes count those that want to run one. A process at the end of its block takes part in the
    passes of the others until no process wants to run one; all processes must enter and exit the block. ``layers``
    are in the order in which a pass runs them; collectives of several processes use ``device``.

    Raises:
        RunError: A pass failed between two layers, so that the shards of the others can no longer be gathered.
    """

    def __init__(self, layers: Sequence[FSDPModule], *, device: torch.device) -> None:
        self._layers, self._device = layers, device
        self._running = False
        self._hooks: list[Any] = []

    def __enter__(self) -> None:
        first: Any = self._layers[0]
        last: Any = self._layers[-1]
        # prepend: before the hook that gathers the first layer
        self._hooks = [
            first.register_forward_pre_hook(self._before_pass, prepend=True),
            last.register_forward_hook(self._after_pass),
        ]

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        for hook in self._hooks:
            hook.remove()
        while kind is None and self._count(0):
            self._take_part()
        # FSDP2 records every pass until the next backward pass; PyTorch 2.11 cannot clear the record
        if kind is None and hasattr(FSDPModule, "reset_iter_state"):
            for layer in self._layers:
                layer.reset_iter_state()

    def _before_pass(self, *_: Any) -> None:
        if self._running:
            raise RunError(
                "evaluation.batch_size: a forward pass through sharded layers failed, probably because memory ran "
                "out, and cannot be repeated with a smaller batch; set a smaller value"
            )
        self._count(1)
        self._running = True

    def _after_pass(self, *_: Any) -> None:
        self._running = False

    def _count(self, wanted: int) -> int:
        """Return the number of processes that want to run a pass."""
        total = torch.tensor(wanted, device=self._device)
        distributed.all_reduce(total)
        return int(total)

    def _take_part(self) -> None:
        """Contribute this process's shards to a pass of others."""
        with torch.no_grad():
            for layer in self._layers:
                layer.unshard()
                layer.reshard()
