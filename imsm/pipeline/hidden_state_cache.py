"""Decide whether and where training caches the hidden states of the streams that it does not change.

They are those of the original stream; with a frozen adapter those of the tuned stream as well.
"""

import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from imsm.config.schema import RunConfig
from imsm.data.tokenization import TokenizedExample
from imsm.distributed.context import DistributedContext
from imsm.models.backbones.fingerprint import backbone_fingerprint
from imsm.models.siamese.hidden_state_cache import HiddenStateCache, cache_bytes, canonical_order, compute_in_memory
from imsm.models.siamese.model import SiameseForCausalLM
from imsm.models.siamese.streams import Stream
from imsm.pipeline.model import frozen_adapter_hash, needs_original_stream
from imsm.training.hidden_state_store import (
    CacheKey,
    caches_dir,
    folder_size,
    get_or_compute,
    make_cache_key,
    open_cache,
)
from imsm.utils.errors import UserError
from imsm.utils.formatting import format_bytes


def open_hidden_state_cache(
    config: RunConfig,
    model: SiameseForCausalLM,
    examples: Sequence[TokenizedExample],
    *,
    pad_id: int,
    dist_context: DistributedContext,
    texts: bool = False,
) -> HiddenStateCache | None:
    """Return the cache for training, computed if missing; None to run the original stream instead.

    All processes decide alike: the cache of rank 0 is used if every process can read it.
    ``examples`` are those for training and validation, or with ``texts`` those of rehearsal; DeepSpeed must not have
    partitioned ``model``.

    Raises:
        UserError: `hidden_state_cache` requires a cache that does not fit or cannot be written.
    """
    if config.hidden_state_cache == "off" or not needs_original_stream(config, texts=texts):
        return None
    request = _CacheRequest(config, model, examples, pad_id)
    if config.hidden_state_cache == "ram":
        request.check_fits()
        return _combined([compute_in_memory(model, examples, pad_id=pad_id, stream=each) for each in request.streams])
    # rank 0 computes alone: the other processes read its files, or report that they cannot
    found = dist_context.run_model_on_main(request.compute_on_disk)
    folders, error = found["folders"], found["error"]
    cache = None
    if folders:
        try:
            cache = _combined([open_cache(Path(folder), examples) for folder in folders])
        except (OSError, RuntimeError) as exception:
            error = f"{folders[0]} cannot be read by process {dist_context.rank} ({exception})"
    # a process that ran the original stream alone would issue other collectives than the rest
    errors = [each for each in dist_context.all_gather(error or "") if each]
    if not errors:
        return cache
    if config.hidden_state_cache == "disk":
        raise UserError(f"hidden_state_cache=disk: {errors[0]}")
    if dist_context.is_main:
        print(f"hidden_state_cache=auto: off, {errors[0]}; the original stream runs at every step", file=sys.stderr)
    return None


def check_cache_fits(
    config: RunConfig,
    model: SiameseForCausalLM,
    examples: Sequence[TokenizedExample],
    *,
    pad_id: int,
    texts: bool = False,
) -> None:
    """Check, before training, that a cache required by `hidden_state_cache` fits.

    Raises:
        UserError: The cache exceeds the configured limit or the free disk space.
    """
    if config.hidden_state_cache in ("disk", "ram") and needs_original_stream(config, texts=texts):
        _CacheRequest(config, model, examples, pad_id).check_fits()


def precompute_cache(
    config: RunConfig, model: SiameseForCausalLM, examples: Sequence[TokenizedExample], *, pad_id: int
) -> str:
    """Compute a run's cache on disk before the run; return its size and folders as text.

    Raises:
        UserError: The cache does not fit or cannot be written.
    """
    found = _CacheRequest(config, model, examples, pad_id).compute_on_disk()
    if found["error"] is not None:
        raise UserError(f"hidden_state_cache={config.hidden_state_cache}: {found['error']}")
    size = sum(folder_size(Path(folder)) for folder in found["folders"])
    return f"{format_bytes(size)} in {' and '.join(found['folders'])}"


def _combined(caches: list[HiddenStateCache]) -> HiddenStateCache:
    """Return the original's cache with that of the tuned stream, if there is one."""
    original, *tuned = caches
    return replace(original, tuned=tuned[0]) if tuned else original


@dataclass(frozen=True)
class _CacheRequest:
    """The hidden-state caches that a run needs, one per stream."""

    config: RunConfig
    model: SiameseForCausalLM
    examples: Sequence[TokenizedExample]
    pad_id: int

    @property
    def streams(self) -> tuple[Stream, ...]:
        """The cached streams."""
        return ("original",) if self.config.frozen_adapter is None else ("original", "tuned")

    def compute_on_disk(self) -> dict[str, Any]:
        """Compute or verify the caches on disk; return their folders or the error."""
        folders: list[str] = []
        if (error := self._disk_error()) is not None:
            return {"folders": folders, "error": error}
        for key in self._keys():
            label = " ".join(
                [self.config.backbone.name, self.config.data.name, *([key.stream] if key.adapter else [])]
            )
            try:
                folders.append(str(get_or_compute(key, self.model, self.examples, pad_id=self.pad_id, label=label)))
            except (OSError, UserError) as exception:
                return {"folders": [], "error": f"{key.path.parent} could not be written ({exception})"}
        return {"folders": folders, "error": None}

    def check_fits(self) -> None:
        """Raise a UserError if a missing cache would not fit."""
        if self.config.hidden_state_cache == "ram":
            error = self._limit_error(self._size() * len(self.streams), others=0)
        else:
            error = self._disk_error()
        if error is not None:
            raise UserError(f"hidden_state_cache={self.config.hidden_state_cache}: {error}")

    def _limit_error(self, size: int, *, others: int) -> str | None:
        """Compare ``size`` with the configured limit; ``others`` is that of existing caches, in bytes."""
        limit = self.config.hidden_state_cache_gb
        # 1 GB is 1e9 bytes here, as disks are sold, and not 2**30
        if size + others <= limit * 1e9:
            return None
        existing = f" in addition to {format_bytes(others)} of other caches" if others else ""
        clear = ", or run `imsm cache clear`" if others else ""
        return (
            f"it takes {format_bytes(size)}{existing}, more than hidden_state_cache_gb={limit:g} allows "
            f"(raise the limit{clear})"
        )

    def _disk_error(self) -> str | None:
        """Return why the missing caches do not fit on the disk, or None."""
        size = self._size() * sum(not key.path.exists() for key in self._keys())
        if not size:
            return None
        folder = caches_dir()
        if error := self._limit_error(size, others=folder_size(folder)):
            return error
        # shutil.disk_usage needs an existing folder, and the cache's folder is created later
        existing = next(each for each in (folder, *folder.parents) if each.exists())
        free = shutil.disk_usage(existing).free
        if size <= free:
            return None
        return (
            f"it takes {format_bytes(size)} and {existing} has {format_bytes(free)} free (set IMSM_CACHE to "
            "a folder on another disk)"
        )

    def _size(self) -> int:
        """Return the bytes of one stream's cache."""
        examples = canonical_order(self.examples)
        return cache_bytes(
            num_examples=len(examples),
            num_answer_tokens=sum(len(each.answer_ids) for each in examples),
            hidden_size=int(self.model.config.hidden_size),
            dtype=getattr(torch, self.config.backbone.dtype),
        )

    def _keys(self) -> list[CacheKey]:
        """Return the keys of the cached streams."""
        backbone, liger = self.config.backbone, self.config.trainer.liger_kernel
        fingerprint = backbone_fingerprint(
            name_or_path=backbone.name_or_path, revision=backbone.revision, local_resolver=backbone.local_resolver
        )
        make_key = partial(
            make_cache_key,
            self.examples,
            backbone=f"{fingerprint}+{backbone.quantization}" if backbone.quantization is not None else fingerprint,
            dtype=backbone.dtype,
            attention=f"{backbone.attn_implementation}+liger" if liger else backbone.attn_implementation,
            pooling=self.config.gate.pooling,
            device=next(self.model.backbone.parameters()).device,
        )
        adapter = frozen_adapter_hash(self.config)
        return [make_key(), *([make_key(adapter=adapter)] if adapter is not None else [])]
