"""Models whose weights are a quantized GGUF file in an installed Python package.

The weights are dequantized once to float32 and cached as safetensors next to the tokenizer. Because of the
quantization, results differ from those of the model on the Hub.
"""

from __future__ import annotations

import importlib.util
import json
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from imsm.utils.errors import UserError
from imsm.utils.files import file_lock
from imsm.utils.hashing import HashingWriter, hash_file_cached
from imsm.utils.json_files import read_json
from imsm.utils.paths import cache_folder

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_COMPLETE = "complete.json"


@dataclass(frozen=True, kw_only=True)
class GgufModel:
    """A model in a package.

    Attributes:
        title: Name in messages.
        hub_id: Its id on the Hub, which the package replaces.
        package: Top-level module of the package; it is located, not imported.
        folder_name: Folder in the cache.
        size_gb: Size of the float32 weights.
        quantization: Of the weights in the package, e.g. "4-bit".
        reinstall: Command that repairs the package.
        weights: Returns the parts of the GGUF file, in order, and the SHA-256 of the whole.
        check: Raises UserError if transformers reads the model or tokenizer in an unexpected way.
    """

    title: str
    hub_id: str
    package: str
    folder_name: str
    size_gb: float
    quantization: str
    reinstall: str
    weights: Callable[[], tuple[Sequence[Path], str]]
    check: Callable[[PreTrainedModel, PreTrainedTokenizerBase], None]

    def local_path(self, path: str) -> Path | None:
        """Return the folder of the dequantized model and its tokenizer.

        None if ``path`` is not this model's Hub id or the package is not installed. The first call
        creates the folder in one or two minutes, while concurrent calls wait; later calls verify it and
        create it again if it is incomplete.

        Raises:
            UserError: the package is damaged, `gguf` is not installed, or the disk is full.
        """
        folder = self._folder(path)
        if folder is not None and not is_complete(folder):
            with file_lock(folder.parent, wait=True):
                # Another process may have created it while this one waited.
                if not is_complete(folder):
                    self._create(folder)
        return folder

    def local_source(self, path: str) -> str | None:
        """Describe where `local_path` takes the weights from, for ``mode=plan``; None if it returns None.

        Creates no file and checks names only.
        """
        folder = self._folder(path)
        if folder is None:
            return None
        if (folder / _COMPLETE).is_file():
            return f"{self.quantization} weights, dequantized ({folder})"
        size = f"{self.size_gb:.1f} GB"
        return f"{self.quantization} weights of the installed package; dequantized once, {size} in {folder}"

    def _folder(self, path: str) -> Path | None:
        if path != self.hub_id or importlib.util.find_spec(self.package) is None:
            return None
        return cache_folder() / self.folder_name / "float32"

    def _create(self, folder: Path) -> None:
        """Write a temporary folder and rename it to ``folder`` when it is complete."""
        from safetensors import SafetensorError

        partial = folder.with_name("partial")
        reason = "is damaged and is created again" if folder.exists() else "is created once"
        work = f"{self.quantization} weights to float32, {self.size_gb:.1f} GB, 1-2 minutes"
        print(f"{self.title}: {folder} {reason}: {work}", file=sys.stderr)
        # Before the free space is measured, which an interrupted call may have used.
        for old in (partial, folder):
            shutil.rmtree(old, ignore_errors=True)
        # the GGUF file has at most a quarter of the float32 size; the rest is a margin
        free, needed = shutil.disk_usage(folder.parent).free / 1e9, 1.4 * self.size_gb
        if free < needed:
            raise UserError(
                f"{folder.parent}: {free:.1f} GB free, {self.title} needs {needed:.1f} GB; "
                "free some space, or set IMSM_CACHE to a folder on another disk"
            )
        try:
            partial.mkdir()
            parts, sha256 = self.weights()
            join_parts(parts, partial / "model.gguf", sha256=sha256, reinstall=self.reinstall)
            self._dequantize(partial / "model.gguf", partial)
            # Written last and renamed last: an interrupted call leaves no folder that looks complete.
            digests = {file.name: hash_file_cached(file) for file in sorted(partial.iterdir())}
            (partial / _COMPLETE).write_text(json.dumps(digests, indent=2) + "\n", encoding="utf-8")
            partial.rename(folder)
        except (OSError, SafetensorError) as error:
            raise UserError(
                f"{folder}: could not be created ({error}); free some space, or set IMSM_CACHE to a folder on "
                "another disk"
            ) from error
        finally:
            shutil.rmtree(partial, ignore_errors=True)
        print(f"{self.title}: ready in {folder}", file=sys.stderr)

    def _dequantize(self, gguf: Path, folder: Path) -> None:
        """Write ``gguf`` as float32 safetensors and a tokenizer to ``folder``, then delete it."""
        if importlib.util.find_spec("gguf") is None:
            raise UserError(f"{self.title}: gguf is needed to read its weights; pip install gguf")
        # transformers and torch are imported here only: this module is imported to plan a run as well.
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        model = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
        # The conversion of special tokens differs between versions of transformers, without an error.
        self.check(model, tokenizer)
        # The weights are float32 now; with these attributes save_pretrained would treat them as quantized.
        if hasattr(model.config, "quantization_config"):
            del model.config.quantization_config
        model.hf_quantizer = None  # type: ignore[assignment]
        # Disk space: the weights are in memory, and the GGUF file is in the package.
        gguf.unlink()
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)


def is_complete(folder: Path) -> bool:
    """Whether all files of a finished ``folder`` exist and are unchanged."""
    try:
        digests = read_json(folder / _COMPLETE, fix="convert again")
        files = [hash_file_cached(folder / name) == digest for name, digest in digests.items()]
    except (OSError, UserError):
        return False
    return bool(files) and all(files)


def join_parts(parts: Sequence[Path], target: Path, *, sha256: str, reinstall: str) -> None:
    """Concatenate ``parts`` into ``target``.

    Raises:
        UserError: a part is missing, or the SHA-256 of the result differs.
    """
    with target.open("wb") as stream:
        writer = HashingWriter(stream)
        for part in parts:
            if not part.is_file():
                raise UserError(f"{part}: is missing from its package; {reinstall}")
            with part.open("rb") as source:
                while block := source.read(1 << 20):
                    writer.write(block)
    if writer.hexdigest() != sha256:
        names = ", ".join(part.name for part in parts)
        raise UserError(f"{names}: damaged (sha256 {writer.hexdigest()}, expected {sha256}); {reinstall}")
