"""Between stages: the bank of the original's memories that a training reads, if it has one."""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from imsm.models.backbones.fingerprint import backbone_fingerprint
from imsm.models.siamese.hidden_state_cache import HiddenStateCache, bank_bytes, canonical_order, compute_in_memory
from imsm.pipeline.model import needs_original_stream
from imsm.training.hidden_state_store import banks_folder, contents_of, get_or_compute, open_cache, size_of
from imsm.utils.errors import UserError
from imsm.utils.formatting import format_bytes

if TYPE_CHECKING:
    from collections.abc import Sequence

    from imsm.config.schema import RunConfig
    from imsm.data.tokenization import TokenizedExample
    from imsm.distributed.context import DistributedContext
    from imsm.models.siamese.model import SiameseForCausalLM
    from imsm.training.hidden_state_store import CacheKey

GIGABYTE = 1e9


def open_hidden_state_cache(
    config: RunConfig,
    model: SiameseForCausalLM,
    items: Sequence[TokenizedExample],
    *,
    pad_id: int,
    dist_context: DistributedContext,
) -> HiddenStateCache | None:
    """The bank that a training reads; None: it runs the original stream at every step.

    All processes decide alike: what the first one filled is used if each of them can read it.

    Args:
        config: the run's.
        model: before DeepSpeed takes it over.
        items: all examples that are learned or validated on.
        pad_id: the padding token.
        dist_context: this process and those beside it.

    Raises:
        UserError: `memory_bank` asks for one that does not fit or cannot be written.
    """
    if config.hidden_state_cache == "off" or not needs_original_stream(config):
        return None
    asked = _CacheRequest(config, model, items, pad_id)
    if config.hidden_state_cache == "ram":
        asked.refuse(asked.over_limit(0))
        return compute_in_memory(model, items, pad_id=pad_id)
    told = json.loads(dist_context.run_on_main(asked.on_disk))
    place, problem = told["place"], told["problem"]
    bank = None
    if place is not None:
        try:
            bank = open_cache(Path(place), items)
        except (OSError, RuntimeError) as error:
            problem = f"{place} cannot be read by process {dist_context.rank} ({error})"
    errors = [each for each in dist_context.all_gather(problem or "") if each]
    if not errors:
        return bank
    if config.hidden_state_cache == "disk":
        raise UserError(f"hidden_state_cache=disk: {errors[0]}")
    if dist_context.is_main:
        print(f"hidden_state_cache=auto: off, {errors[0]}; the original stream runs at every step", file=sys.stderr)
    return None


def check_cache_fits(
    config: RunConfig, model: SiameseForCausalLM, items: Sequence[TokenizedExample], *, pad_id: int
) -> None:
    """Before a training begins that will ask for its bank (`bank_of`): can it be had?

    Raises:
        UserError: `memory_bank` asks for one that does not fit.
    """
    if config.hidden_state_cache in ("disk", "ram") and needs_original_stream(config):
        _CacheRequest(config, model, items, pad_id).refuse_without_room()


def precompute_cache(
    config: RunConfig, model: SiameseForCausalLM, items: Sequence[TokenizedExample], *, pad_id: int
) -> str:
    """Fill a run's bank ahead of it, on disk; a line that says where it lies.

    Raises:
        UserError: it does not fit or cannot be written.
    """
    told = json.loads(_CacheRequest(config, model, items, pad_id).on_disk())
    if told["place"] is None:
        raise UserError(f"hidden_state_cache={config.hidden_state_cache}: {told['problem']}")
    place = Path(told["place"])
    return f"{format_bytes(size_of(place))} in {place}"


@dataclass(frozen=True)
class _CacheRequest:
    """A bank that a run asks for."""

    config: RunConfig
    model: SiameseForCausalLM
    items: Sequence[TokenizedExample]
    pad_id: int

    def on_disk(self) -> str:
        """Where it lies, filled and checked, or why there is none: JSON of place and problem."""
        contents = self._contents()
        place = banks_folder() / contents.key
        problem = None if (place / "bank").exists() else self._no_room()
        found = None
        if problem is None:
            label = f"{self.config.backbone.name} {self.config.data.name}"
            try:
                found = get_or_compute(contents, self.model, self.items, pad_id=self.pad_id, label=label)
            except (OSError, UserError) as error:
                problem = f"{place} could not be filled ({error})"
        return json.dumps({"place": None if found is None else str(found), "problem": problem})

    def over_limit(self, others: int) -> str | None:
        """Why it is too large beside ``others`` (bytes of banks); None: it is not."""
        limit = self.config.hidden_state_cache_gb
        if self._size() + others <= limit * GIGABYTE:
            return None
        beside = f" beside {format_bytes(others)} of other banks" if others else ""
        clear = ", or `imsm cache clear`" if others else ""
        return (
            f"it takes {format_bytes(self._size())}{beside}, more than hidden_state_cache_gb={limit:g}"
            f" allows (raise that{clear})"
        )

    def refuse_without_room(self) -> None:
        """Raise where a bank that is not there yet would not fit."""
        if self.config.hidden_state_cache == "ram":
            self.refuse(self.over_limit(0))
        elif not (banks_folder() / self._contents().key / "bank").exists():
            self.refuse(self._no_room())

    def refuse(self, problem: str | None) -> None:
        if problem is not None:
            raise UserError(f"hidden_state_cache={self.config.hidden_state_cache}: {problem}")

    def _no_room(self) -> str | None:
        folder = banks_folder()
        if problem := self.over_limit(size_of(folder)):
            return problem
        there = next(each for each in (folder, *folder.parents) if each.exists())
        free = shutil.disk_usage(there).free
        if self._size() <= free:
            return None
        return (
            f"it takes {format_bytes(self._size())} and {there} has {format_bytes(free)} free (IMSM_CACHE "
            "chooses another disk)"
        )

    def _size(self) -> int:
        examples = canonical_order(self.items)
        return bank_bytes(
            examples=len(examples),
            answer_tokens=sum(len(each.answer_ids) for each in examples),
            width=int(self.model.config.hidden_size),
            dtype=getattr(torch, self.config.backbone.dtype),
        )

    def _contents(self) -> CacheKey:
        backbone = self.config.backbone
        return contents_of(
            self.items,
            backbone=backbone_fingerprint(
                name_or_path=backbone.name_or_path, revision=backbone.revision, local_resolver=backbone.local_resolver
            ),
            dtype=backbone.dtype,
            attention=backbone.attn_implementation,
            pooling=self.config.gate.pooling,
            device=next(self.model.backbone.parameters()).device,
        )
