"""Check the small files of a local backbone, before its weights are read or hashed.

transformers and tokenizers report damaged or missing files late, and by the error of a parser.
"""

import os
from pathlib import Path

from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_MASKED_LM_MAPPING, PretrainedConfig

from imsm.utils.errors import UserError
from imsm.utils.json_files import read_json

_VOCABULARIES = ("tokenizer.json", "*.model", "vocab*", "*.tiktoken", "tekken.json")
"""Files of which a tokenizer needs one."""
_SHAPES: dict[str, dict[str, type]] = {
    "config.json": {},
    "generation_config.json": {},
    "model.safetensors.index.json": {"weight_map": dict},
    "tokenizer.json": {"model": dict},
    "tokenizer_config.json": {},
    "special_tokens_map.json": {},
}
_FIX = "copy or download the file again"


def check_json_files(source: str) -> None:
    """Read the JSON files of a local folder; a Hub id is not checked.

    Raises:
        UserError: A file cannot be read, or has other content.
    """
    folder = Path(source)
    for name, shape in _SHAPES.items() if folder.is_dir() else ():
        if os.path.lexists(folder / name):
            read_json(folder / name, fix=_FIX, shape=shape)


def missing_tokenizer(source: str) -> str | None:
    """Return the error of a local folder without the vocabulary of a tokenizer; None for others and for a Hub id."""
    folder = Path(source)
    if not folder.is_dir() or any(any(folder.glob(pattern)) for pattern in _VOCABULARIES):
        return None
    return (
        f"backbone {source}: has no tokenizer (no tokenizer.json or tokenizer.model); copy the tokenizer's files of "
        "the same model into the folder"
    )


def check_decoder(config: PretrainedConfig, source: str) -> None:
    """Reject an encoder, whose hidden states depend on later tokens.

    Raises:
        UserError: The configuration is that of an encoder.
    """
    kinds = (MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_MASKED_LM_MAPPING)
    # transformers loads an encoder as a language model, with only a warning
    if all(type(config) in kind for kind in kinds) and not getattr(config, "is_decoder", False):
        raise UserError(
            f"backbone {source}: is an encoder (model_type {config.model_type}), not a causal language model; choose "
            "a model listed in docs/compatibility.md, or set is_decoder=true in its config.json if it was trained so"
        )
