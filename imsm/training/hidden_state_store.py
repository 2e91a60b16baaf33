"""Hidden-state caches on disk, computed once and shared by all runs and processes.

    <cache>/hidden_states/<key>/lock                held while the cache is opened or computed
                               /data/index.json     content, and the SHA-256 of itself and of the other files
                               /data/hidden_states  h_o or h_t, (A, D), raw
                               /data/queries        q_o or q_t, (E, D), raw float32
                               /damaged/            a cache that did not match its index

<key> is a hash of everything that determines the values: see `CacheKey`. A cache is written to a
temporary folder and renamed when complete.
"""

import json
import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from imsm.data.tokenization import TokenizedExample
from imsm.models.siamese.hidden_state_cache import (
    ChunkResult,
    HiddenStateCache,
    canonical_order,
    compute_hidden_states,
    hash_examples,
    row_offsets,
)
from imsm.models.siamese.model import SiameseForCausalLM
from imsm.models.siamese.streams import Stream
from imsm.utils.errors import UserError
from imsm.utils.files import file_lock
from imsm.utils.hashing import HashingWriter, hash_file, hash_text
from imsm.utils.json_files import read_hashed_json, write_hashed_json
from imsm.utils.paths import cache_folder
from imsm.utils.progress import progress_bar

FORMAT = 3
"""Increased whenever the same examples would give other values, another row order or other files."""
_SHAPE = {"files": dict, "dtype": str, "examples": int, "tokens": int, "width": int}
INDEX, HIDDEN_STATES, QUERIES = "index.json", "hidden_states", "queries"


@dataclass(frozen=True, kw_only=True)
class CacheKey:
    """Everything that determines the bits of a cache.

    ``backbone`` is a hash of the weights and ``examples`` of the tokens (`hash_examples`);
    ``attention`` is transformers' implementation, None for its default; ``device`` is "cpu" or a
    GPU's name, because GPU models round differently. ``adapter`` is a hash of the weights of a frozen adapter, whose
    tuned stream is cached; None for the original stream.
    """

    backbone: str
    dtype: str
    attention: str | None
    pooling: str
    device: str
    examples: str
    adapter: str | None = None

    @property
    def stream(self) -> Stream:
        """The stream whose hidden states are cached."""
        return "original" if self.adapter is None else "tuned"

    def values(self) -> dict[str, Any]:
        """Return the fields as JSON types, without an adapter that is None."""
        return {name: value for name, value in asdict(self).items() if name != "adapter" or value is not None}

    @property
    def folder_name(self) -> str:
        """Return the name of the cache's folder."""
        return hash_text(json.dumps({"format": FORMAT, **self.values()}, sort_keys=True))[:32]

    @property
    def path(self) -> Path:
        """Return the folder of the complete cache, whether or not it exists."""
        return caches_dir() / self.folder_name / "data"


def make_cache_key(
    examples: Sequence[TokenizedExample],
    *,
    backbone: str,
    dtype: str,
    attention: str | None,
    pooling: str,
    device: torch.device,
    adapter: str | None = None,
) -> CacheKey:
    """Return the key for these examples, in any order; see `CacheKey`."""
    return CacheKey(
        backbone=backbone,
        dtype=dtype,
        attention=attention,
        pooling=pooling,
        device=torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        examples=hash_examples(canonical_order(examples)),
        adapter=adapter,
    )


def caches_dir() -> Path:
    """Return the folder of all hidden-state caches of this machine."""
    return cache_folder() / "hidden_states"


def get_or_compute(
    key: CacheKey, model: SiameseForCausalLM, examples: Sequence[TokenizedExample], *, pad_id: int, label: str
) -> Path:
    """Return the folder of an intact cache, computed first if it is missing or damaged.

    Other processes that need the same cache wait. ``model`` may be any with the backbone and, for a tuned stream, the
    adapter; the examples may be in any order, and ``label`` is shown by `imsm cache list`.

    Raises:
        OSError: The cache cannot be written.
        UserError: The cache folder cannot be written.
    """
    path = key.path
    # the lock covers the check as well: a second process must not quarantine what the first one writes
    with file_lock(path.parent, wait=True):
        if path.exists():
            error = verify(path)
            if error is None:
                return path
            _quarantine(path, error)
        incomplete = path.with_name("incomplete")
        shutil.rmtree(incomplete, ignore_errors=True)  # from a killed process
        incomplete.mkdir()
        # renamed only when complete, so that a reader without the lock never sees a part
        try:
            _write(incomplete, key, model, canonical_order(examples), pad_id=pad_id, label=label)
            incomplete.rename(path)
        finally:
            shutil.rmtree(incomplete, ignore_errors=True)
        return path


def open_cache(path: Path, examples: Sequence[TokenizedExample]) -> HiddenStateCache:
    """Memory-map a cache; ``examples`` are those it was computed for, in any order.

    Raises:
        OSError: The cache is missing or damaged.
    """
    index = read_index(path)
    num_examples, num_tokens, width = (index[name] for name in ("examples", "tokens", "width"))
    dtype = getattr(torch, index["dtype"])
    # torch.from_file maps the file: processes share its pages, which are read on demand
    hidden_states = torch.from_file(str(path / HIDDEN_STATES), size=num_tokens * width, dtype=dtype)
    queries = torch.from_file(str(path / QUERIES), size=num_examples * width, dtype=torch.float32)
    # not stored: they follow from the examples, whose hash is part of the key
    offsets = row_offsets(canonical_order(examples))
    return HiddenStateCache(offsets, hidden_states.view(num_tokens, width), queries.view(num_examples, width))


def folder_size(folder: Path) -> int:
    """Return the bytes of all files below a folder; 0 if it does not exist."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def read_index(path: Path) -> dict[str, Any]:
    """Return the index of a cache.

    Raises:
        OSError: The index is missing or damaged.
    """
    try:
        return read_hashed_json(path / INDEX, fix="remove it with imsm cache clear", shape=_SHAPE)
    except UserError as error:
        raise OSError(str(error)) from error


def verify(path: Path) -> str | None:
    """Hash a cache's files; return why it is unusable, or None if it matches its index."""
    try:
        expected = read_index(path)["files"]
        for name in (HIDDEN_STATES, QUERIES):
            if hash_file(path / name) != expected.get(name):
                return f"{name} is damaged: its hash differs"
    except OSError as error:
        return error.strerror or str(error)
    return None


def _quarantine(path: Path, error: str) -> None:
    damaged = path.with_name("damaged")
    shutil.rmtree(damaged, ignore_errors=True)
    path.rename(damaged)
    print(f"warning: hidden-state cache {path}: {error}; moved to {damaged} and computed again", file=sys.stderr)


def _write(
    folder: Path,
    key: CacheKey,
    model: SiameseForCausalLM,
    examples: Sequence[TokenizedExample],
    *,
    pad_id: int,
    label: str,
) -> None:
    shape: dict[str, Any] = {}
    # hashed while written, which saves reading gigabytes again
    with _hashed_file(folder / HIDDEN_STATES) as hidden_states, _hashed_file(folder / QUERIES) as queries:

        def write_chunk(chunk: ChunkResult) -> None:
            rows, pooled = chunk
            hidden_states.write(_raw_bytes(rows))
            queries.write(_raw_bytes(pooled))
            shape.update(width=rows.shape[1], dtype=str(rows.dtype).removeprefix("torch."))

        def with_progress(chunks: list[list[TokenizedExample]]) -> Iterator[list[TokenizedExample]]:
            yield from progress_bar(chunks, total=len(chunks), label="hidden-state cache", unit="chunk", keep=False)

        compute_hidden_states(
            model, examples, pad_id=pad_id, on_chunk=write_chunk, progress=with_progress, stream=key.stream
        )
    index = {
        "label": label,
        **key.values(),
        **shape,
        "examples_sha256": key.examples,
        "examples": len(examples),
        "tokens": sum(len(example.answer_ids) for example in examples),
        "files": {HIDDEN_STATES: hidden_states.hexdigest(), QUERIES: queries.hexdigest()},
    }
    write_hashed_json(folder / INDEX, index)


def _raw_bytes(tensor: torch.Tensor) -> memoryview:
    # through uint8, because numpy has no bfloat16
    return tensor.contiguous().view(torch.uint8).numpy().data


@contextmanager
def _hashed_file(path: Path) -> Iterator[HashingWriter]:
    with path.open("wb", buffering=2**20) as stream:
        yield HashingWriter(stream)
        stream.flush()
        os.fsync(stream.fileno())
