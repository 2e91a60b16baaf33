"""Memory banks on disk, in the cache: filled once, shared by all runs and processes.

    <cache>/hidden_states/<key>/lock            held while the bank is looked for, filled or checked
                              /bank/index.json what it holds, and the checksums of its rows
                              /bank/memories   h_o, (A, D), as it lies in memory
                              /bank/queries    q_o, (E, D), float32
                              /damaged/        what was found not to be what its index says

The key is a digest of all that decides a row: see `Contents`. A bank is written in a folder beside
its own, which is renamed when it is whole.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from imsm.models.siamese.hidden_state_cache import (
    HiddenStateCache,
    Piece,
    canonical_order,
    compute_hidden_states,
    hash_examples,
    row_offsets,
)
from imsm.utils.files import file_lock, write_atomic
from imsm.utils.hashing import HashingWriter, hash_file, hash_text
from imsm.utils.paths import cache_folder
from imsm.utils.progress import progress_bar

if TYPE_CHECKING:
    from collections.abc import Sequence

    from imsm.data.tokenization import TokenizedExample
    from imsm.models.siamese.model import SiameseForCausalLM

FORMAT = 1
"""Changed whenever the same examples would give other rows, or rows in other places."""
INDEX, MEMORIES, QUERIES = "index.json", "memories", "queries"
_BUFFER = 2**20


@dataclass(frozen=True, kw_only=True)
class CacheKey:
    """What decides the rows of a bank, to the last bit.

    Args:
        backbone: the fingerprint of its weights.
        dtype: of the backbone.
        attention: transformers' name of the attention's implementation; None: its choice.
        pooling: of the query memories.
        device: the kind that computes them ("cpu", or a GPU's name).
        examples: the digest of their tokens (`digest_of`).
    """

    backbone: str
    dtype: str
    attention: str | None
    pooling: str
    device: str
    examples: str

    @property
    def key(self) -> str:
        """The name of the bank's folder."""
        text = json.dumps({"format": FORMAT, **asdict(self)}, sort_keys=True)
        return hash_text(text)[:32]


def contents_of(
    items: Sequence[TokenizedExample],
    *,
    backbone: str,
    dtype: str,
    attention: str | None,
    pooling: str,
    device: torch.device,
) -> CacheKey:
    """What a bank of these examples, in any order, holds; see `Contents`."""
    kind = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    return CacheKey(
        backbone=backbone,
        dtype=dtype,
        attention=attention,
        pooling=pooling,
        device=kind,
        examples=hash_examples(canonical_order(items)),
    )


def banks_folder() -> Path:
    """Where all banks of this machine lie."""
    return cache_folder() / "hidden_states"


def get_or_compute(
    contents: CacheKey, model: SiameseForCausalLM, items: Sequence[TokenizedExample], *, pad_id: int, label: str
) -> Path:
    """The bank's folder, whole and checked; filled first if it is not there or damaged.

    Other processes that want the same bank wait until it is there.

    Args:
        contents: of the bank.
        model: with the backbone; see `fill`.
        items: the examples, in any order.
        pad_id: the padding token.
        label: what to call it in a list.

    Raises:
        OSError: it cannot be written.
        UserError: the cache's folder cannot be written.
    """
    place = banks_folder() / contents.key
    with file_lock(place, wait=True):
        bank = place / "bank"
        if bank.exists():
            problem = verify(bank)
            if problem is None:
                return bank
            _quarantine(bank, problem)
        unfinished = place / "filling"
        shutil.rmtree(unfinished, ignore_errors=True)  # of a killed process
        unfinished.mkdir()
        try:
            _write(unfinished, contents, model, canonical_order(items), pad_id=pad_id, label=label)
            unfinished.rename(bank)
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
        return bank


def open_cache(bank: Path, items: Sequence[TokenizedExample]) -> HiddenStateCache:
    """Map a bank that `filled_bank` gave; its rows are read from the disk when they are used.

    Args:
        bank: the folder.
        items: the examples that it was filled with, in any order.

    Raises:
        OSError: it is not there, or is no bank.
    """
    index = read_index(bank)
    count, tokens, width = (index[key] for key in ("examples", "tokens", "width"))
    dtype = getattr(torch, index["dtype"])
    memories = torch.from_file(str(bank / MEMORIES), size=tokens * width, dtype=dtype)
    queries = torch.from_file(str(bank / QUERIES), size=count * width, dtype=torch.float32)
    places = row_offsets(canonical_order(items))
    return HiddenStateCache(places, memories.view(tokens, width), queries.view(count, width))


def size_of(folder: Path) -> int:
    """Bytes of all files under a folder; 0 if it is not there."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def read_index(bank: Path) -> dict[str, Any]:
    """What a bank says of itself.

    Raises:
        OSError: it cannot be read, or is damaged.
    """
    try:
        index: dict[str, Any] = json.loads((bank / INDEX).read_text(encoding="utf-8"))
        if not isinstance(index["sha256"], dict):
            raise TypeError("no checksums")
    except (ValueError, KeyError, TypeError) as error:
        raise OSError(f"{INDEX} is damaged ({error})") from error
    return index


def verify(bank: Path) -> str | None:
    """Read all of a bank; None: it is what its index says."""
    try:
        expected = read_index(bank)["sha256"]
        for name in (MEMORIES, QUERIES):
            if hash_file(bank / name) != expected.get(name):
                return f"{name} is not what was written"
    except OSError as error:
        return error.strerror or str(error)
    return None


def _quarantine(bank: Path, problem: str) -> None:
    aside = bank.with_name("damaged")
    shutil.rmtree(aside, ignore_errors=True)
    bank.rename(aside)
    print(f"warning: memory bank {bank}: {problem}; it is set aside ({aside}) and filled again", file=sys.stderr)


def _write(
    folder: Path,
    contents: CacheKey,
    model: SiameseForCausalLM,
    examples: Sequence[TokenizedExample],
    *,
    pad_id: int,
    label: str,
) -> None:
    shape: dict[str, Any] = {}
    with _hashing_file(folder / MEMORIES) as memories, _hashing_file(folder / QUERIES) as queries:

        def keep(piece: Piece) -> None:
            rows, pooled = piece
            memories.write(_raw_bytes(rows))
            queries.write(_raw_bytes(pooled))
            shape.update(width=rows.shape[1], dtype=str(rows.dtype).removeprefix("torch."))

        def chunks(every: list[list[TokenizedExample]]) -> Iterator[list[TokenizedExample]]:
            yield from progress_bar(every, total=len(every), label="memory bank", unit="chunk", keep=False)

        compute_hidden_states(model, examples, pad_id=pad_id, keep=keep, chunks=chunks)
    index = {
        "label": label,
        **asdict(contents),
        **shape,
        "examples_digest": contents.examples,
        "examples": len(examples),
        "tokens": sum(len(each.answer_ids) for each in examples),
        "sha256": {MEMORIES: memories.hexdigest(), QUERIES: queries.hexdigest()},
    }
    write_atomic(folder / INDEX, json.dumps(index, indent=2) + "\n")


def _raw_bytes(tensor: torch.Tensor) -> memoryview:
    return tensor.contiguous().view(torch.uint8).numpy().data


@contextmanager
def _hashing_file(path: Path) -> Iterator[HashingWriter]:
    with path.open("wb", buffering=_BUFFER) as stream:
        yield HashingWriter(stream)
        stream.flush()
        os.fsync(stream.fileno())
