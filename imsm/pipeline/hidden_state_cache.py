"""Decide whether and where training caches the original model's hidden states."""

import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from imsm.config.schema import RunConfig
from imsm.data.tokenization import TokenizedExample
from imsm.distributed.context import DistributedContext
from imsm.models.backbones.fingerprint import backbone_fingerprint
from imsm.models.siamese.hidden_state_cache import HiddenStateCache, cache_bytes, canonical_order, compute_in_memory
from imsm.models.siamese.model import SiameseForCausalLM
from imsm.pipeline.model import needs_original_stream
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
) -> HiddenStateCache | None:
    """Return the cache for training, computed if missing; None to run the original stream instead.

    All processes decide alike: the cache of rank 0 is used if every process can read it.
    ``examples`` are those for training and validation; DeepSpeed must not have partitioned ``model``.

    Raises:
        UserError: `hidden_state_cache` requires a cache that does not fit or cannot be written.
    """
    if config.hidden_state_cache == "off" or not needs_original_stream(config):
        return None
    request = _CacheRequest(config, model, examples, pad_id)
    if config.hidden_state_cache == "ram":
        request.check_fits()
        return compute_in_memory(model, examples, pad_id=pad_id)
    # rank 0 computes alone: the other processes read its files, or report that they cannot
    found = dist_context.run_on_main(request.compute_on_disk)
    folder, error = found["folder"], found["error"]
    cache = None
    if folder is not None:
        try:
            cache = open_cache(Path(folder), examples)
        except (OSError, RuntimeError) as exception:
            error = f"{folder} cannot be read by process {dist_context.rank} ({exception})"
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
    config: RunConfig, model: SiameseForCausalLM, examples: Sequence[TokenizedExample], *, pad_id: int
) -> None:
    """Check, before training, that a cache required by `hidden_state_cache` fits.

    Raises:
        UserError: The cache exceeds the configured limit or the free disk space.
    """
    if config.hidden_state_cache in ("disk", "ram") and needs_original_stream(config):
        _CacheRequest(config, model, examples, pad_id).check_fits()


def precompute_cache(
    config: RunConfig, model: SiameseForCausalLM, examples: Sequence[TokenizedExample], *, pad_id: int
) -> str:
    """Compute a run's cache on disk before the run; return its size and folder as text.

    Raises:
        UserError: The cache does not fit or cannot be written.
    """
    found = _CacheRequest(config, model, examples, pad_id).compute_on_disk()
    if found["folder"] is None:
        raise UserError(f"hidden_state_cache={config.hidden_state_cache}: {found['error']}")
    folder = Path(found["folder"])
    return f"{format_bytes(folder_size(folder))} in {folder}"


@dataclass(frozen=True)
class _CacheRequest:
    """The hidden-state cache that a run needs."""

    config: RunConfig
    model: SiameseForCausalLM
    examples: Sequence[TokenizedExample]
    pad_id: int

    def compute_on_disk(self) -> dict[str, str | None]:
        """Compute or verify the cache on disk; return its folder or the error."""
        key = self._key()
        error = None if key.path.exists() else self._disk_error()
        folder = None
        if error is None:
            label = f"{self.config.backbone.name} {self.config.data.name}"
            try:
                folder = str(get_or_compute(key, self.model, self.examples, pad_id=self.pad_id, label=label))
            except (OSError, UserError) as exception:
                error = f"{key.path.parent} could not be written ({exception})"
        return {"folder": folder, "error": error}

    def check_fits(self) -> None:
        """Raise a UserError if a missing cache would not fit."""
        if self.config.hidden_state_cache == "ram":
            error = self._limit_error(others=0)
        else:
            error = None if self._key().path.exists() else self._disk_error()
        if error is not None:
            raise UserError(f"hidden_state_cache={self.config.hidden_state_cache}: {error}")

    def _limit_error(self, *, others: int) -> str | None:
        """Compare with the configured limit; ``others`` is the size of existing caches in bytes."""
        limit = self.config.hidden_state_cache_gb
        # 1 GB is 1e9 bytes here, as disks are sold, and not 2**30
        if self._size() + others <= limit * 1e9:
            return None
        existing = f" in addition to {format_bytes(others)} of other caches" if others else ""
        clear = ", or run `imsm cache clear`" if others else ""
        return (
            f"it takes {format_bytes(self._size())}{existing}, more than hidden_state_cache_gb={limit:g} allows "
            f"(raise the limit{clear})"
        )

    def _disk_error(self) -> str | None:
        folder = caches_dir()
        if error := self._limit_error(others=folder_size(folder)):
            return error
        # shutil.disk_usage needs an existing folder, and the cache's folder is created later
        existing = next(each for each in (folder, *folder.parents) if each.exists())
        free = shutil.disk_usage(existing).free
        if self._size() <= free:
            return None
        return (
            f"it takes {format_bytes(self._size())} and {existing} has {format_bytes(free)} free (set IMSM_CACHE to "
            "a folder on another disk)"
        )

    def _size(self) -> int:
        examples = canonical_order(self.examples)
        return cache_bytes(
            num_examples=len(examples),
            num_answer_tokens=sum(len(each.answer_ids) for each in examples),
            hidden_size=int(self.model.config.hidden_size),
            dtype=getattr(torch, self.config.backbone.dtype),
        )

    def _key(self) -> CacheKey:
        backbone = self.config.backbone
        return make_cache_key(
            self.examples,
            backbone=backbone_fingerprint(
                name_or_path=backbone.name_or_path, revision=backbone.revision, local_resolver=backbone.local_resolver
            ),
            dtype=backbone.dtype,
            attention=backbone.attn_implementation,
            pooling=self.config.gate.pooling,
            device=next(self.model.backbone.parameters()).device,
        )
