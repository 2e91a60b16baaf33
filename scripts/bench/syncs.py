"""How often the host waits for a device: operations whose result, or whose result's size, it reads.

On a CPU, tensors that would be on a GPU are followed from the model's parameters and from `to_device`; tensors that a
collator has made and that stay on the host may be read.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from imsm.models.siamese.inputs import to_device

_READS = {"aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select", "aten::equal", "aten::bincount"}
_READS |= {"aten::unique_dim", "aten::unique_consecutive", "aten::_unique2"}
_INDEXING = {"aten::index", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_"}
"""A boolean index is counted first, and the host reads how many there are."""


def device_reads(model: torch.nn.Module, run: Callable[[], object]) -> Counter[str]:
    """Return how often ``run`` reads from the device, by operation.

    Operations of a backward pass on a GPU run in other threads and are not counted.
    """
    counter = _ReadCounter(model)
    with counter, _followed(counter):
        run()
    return counter.reads


def micro_batch_reads(model: torch.nn.Module, step: Callable[[int], object]) -> int:
    """Return the reads that a further micro-batch adds; ``step`` takes an optimizer step of a number of them."""
    step(1)  # the optimizer's state
    one, two = (device_reads(model, lambda count=count: step(count)).total() for count in (1, 2))
    return two - one


class _ReadCounter(TorchDispatchMode):
    """Counts reads of tensors on the device; on a CPU these are identified by their storage."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.reads: Counter[str] = Counter()
        # weak references, so that the address of a freed storage is not taken for a later one
        self._storages = {_storage(each) for each in [*model.parameters(), *model.buffers()]}

    def add(self, tensor: torch.Tensor) -> None:
        """Follow a tensor that is on the device from here on."""
        self._storages.add(_storage(tensor))

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        tensors = [each for each in tree_leaves((args, kwargs)) if isinstance(each, torch.Tensor)]
        on_device = any(each.is_cuda or _storage(each) in self._storages for each in tensors)
        name = func.name().split(".")[0]
        if on_device and (name in _READS or (name in _INDEXING and _has_mask(args[1]))):
            self.reads[name] += 1
        outputs = func(*args, **(kwargs or {}))
        found = [each for each in tree_leaves(outputs) if isinstance(each, torch.Tensor)]
        if any(each.is_cuda for each in tensors) and any(each.device.type == "cpu" for each in found):
            self.reads[name] += 1
        elif on_device:
            self._storages.update(map(_storage, found))
        return outputs


@contextmanager
def _followed(counter: _ReadCounter) -> Iterator[None]:
    """Follow what imsm's modules copy to the device; on a CPU nothing is copied, so a clone represents it."""

    def copied(values: torch.Tensor, device: torch.device) -> torch.Tensor:
        if device.type != "cpu":
            return to_device(values, device)
        values = values.clone()
        counter.add(values)
        return values

    with ExitStack() as stack:
        for name, module in list(sys.modules.items()):
            if name.startswith("imsm.") and getattr(module, "to_device", None) is to_device:
                stack.enter_context(patch.object(module, "to_device", copied))
        yield


def _storage(tensor: torch.Tensor) -> StorageWeakRef:
    return StorageWeakRef(tensor.untyped_storage())


def _has_mask(indices: Any) -> bool:
    return any(index is not None and index.dtype in (torch.bool, torch.uint8) for index in indices)
