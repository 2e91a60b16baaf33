"""Export the tuned stream of a run as a plain model folder of transformers.

The folder holds the backbone with the adapter merged into its weights (`model.safetensors`), `config.json`,
`generation_config.json` and the tokenizer. vLLM, llama.cpp's converter and Text Generation Inference read the same
files; none of them needs imsm.
"""

import json
import math
import shutil
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.tokenization_utils_base import TOKENIZER_CONFIG_FILE
from transformers.utils import CONFIG_NAME, cached_file

from imsm.models.backbones.fingerprint import backbone_fingerprint
from imsm.models.backbones.loading import load_tokenizer, resolve_path
from imsm.models.siamese.model import SiameseForCausalLM
from imsm.utils.errors import RunError, UserError
from imsm.utils.json_files import read_json
from imsm.utils.new_folder import new_folder
from imsm.utils.run_dir import RunDir, read_identity, read_input_hashes

_SENTENCEPIECE = "tokenizer.model"
"""Vocabulary that llama.cpp's converter reads for some models; transformers reads tokenizer.json and saves no copy."""
_CLASS, _EARLIER_CLASS = "TokenizersBackend", "PreTrainedTokenizerFast"
"""Name of the general tokenizer, and its earlier name, which all versions of transformers read."""
_TOLERANCE = 1e-4
"""Largest KL divergence from the tuned stream in float32, in nats; a merge of LoRA measures about 1e-6."""
_CHECKED_TEXT = (
    "Alice has three apples and buys two more, so she has five. The capital of France is Paris. Is water wet? Yes, it "
    "boils at 100 degrees and freezes at 0."
)


@dataclass(frozen=True, kw_only=True)
class MergeCheck:
    """How far the merged model is from the tuned stream, on a short text.

    Attributes:
        dtype: Type of the weights.
        kl: Largest KL(tuned || merged) of a next token, in nats.
        equal: Positions at which both have the same most likely token.
        positions: Number of positions.
    """

    dtype: str
    kl: float
    equal: int
    positions: int


def export_merged(run: RunDir, folder: Path, *, stream: str | None = None, dtype: str | None = None) -> MergeCheck:
    """Write the tuned stream of a run to a new folder; return how far merging moved it.

    ``stream`` must be "tuned" for a run with a gate, which no plain model computes. ``dtype`` replaces the run's own:
    bfloat16 rounds the merged weights, and with them the adapter. The hashes of the run's files and of its backbone
    are verified first.

    Raises:
        UserError: the run has a gate and ``stream`` is None, its method cannot be merged, its backbone is not a
            model of transformers, its files changed, or ``folder`` is not new.
        RunError: the merged model is not the tuned stream.
    """
    with new_folder(folder, option="--merged") as temporary:
        model = _load_tuned(run, stream=stream, dtype=dtype)
        backbone: Mapping[str, Any] = model.config.backbone
        source = resolve_path(backbone["name_or_path"], local_resolver=backbone.get("local_resolver"))
        tokens = load_tokenizer(name_or_path=str(run.model))(_CHECKED_TEXT, return_tensors="pt").input_ids
        expected = _log_probabilities(model, tokens)
        generation_config = model.generation_config
        try:
            plain = model.merge_and_unload()
        except UserError as error:
            raise UserError(f"run={run.path}: {error}, or serve the run: imsm serve {run.path.name}") from error
        check = _compare(plain, expected, _log_probabilities(plain, tokens))
        if not check.kl <= (_TOLERANCE if plain.dtype == torch.float32 else math.inf):
            raise RunError(
                f"run={run.path}: the merged model differs from the tuned stream (KL {check.kl:.2g} nats); this "
                "method cannot be merged exactly"
            )
        plain.generation_config = generation_config
        plain.save_pretrained(temporary)
        _write_config(plain, temporary / CONFIG_NAME, source=source, revision=backbone.get("revision"))
        write_tokenizer(run, temporary, source=source, revision=backbone.get("revision"))
        for path in temporary.iterdir():
            # safetensors makes its files readable for their owner only
            shutil.copymode(temporary / CONFIG_NAME, path)
    return check


def _compare(model: PreTrainedModel, expected: torch.Tensor, found: torch.Tensor) -> MergeCheck:
    divergence = (expected.exp() * (expected - found)).sum(dim=-1)
    equal = expected.argmax(dim=-1) == found.argmax(dim=-1)
    dtype = str(model.dtype).removeprefix("torch.")
    return MergeCheck(
        dtype=dtype, kl=max(0.0, float(divergence.max())), equal=int(equal.sum()), positions=equal.numel()
    )


def _load_tuned(run: RunDir, *, stream: str | None, dtype: str | None) -> SiameseForCausalLM:
    """Load a run's model on the CPU with its tuned stream selected, after the checks that need no weights."""
    if _read_config(run).get("gate") is not None and stream is None:
        raise UserError(
            f"run={run.path}: its gate depends on the tokens, so no plain model computes the interwoven stream; serve "
            f"it with imsm serve {run.path.name} or export it with --vllm DIR, or add --stream tuned for the tuned "
            "stream alone"
        )
    model = load_verified(run, dtype=dtype)
    model.stream = "tuned"
    return model


def _read_config(run: RunDir) -> dict[str, Any]:
    fix = "restore the file, or remove the run and run its command again"
    shape = {"backbone": dict, "backbone.name_or_path": str}
    config: dict[str, Any] = read_json(run.model / CONFIG_NAME, fix=fix, shape=shape)
    return config


def load_verified(run: RunDir, *, dtype: str | None = None) -> SiameseForCausalLM:
    """Load a run's model on the CPU, in the run's own ``dtype`` by default.

    Raises:
        UserError: its files or its backbone changed, or the backbone is quantized or not a model of transformers.
    """
    config = _read_config(run)
    backbone = {key: config["backbone"].get(key) for key in ("name_or_path", "revision", "local_resolver")}
    if run.inputs.exists() and backbone_fingerprint(**backbone) != read_input_hashes(run)["backbone"]:
        raise UserError(
            f"run={run.path}: the backbone {backbone['name_or_path']} changed since the run was trained "
            f"({run.inputs.name}); restore it"
        )
    if (quantization := config["backbone"].get("quantization")) is not None:
        raise UserError(
            f"run={run.path}: its adapter was trained on weights in 4 bits ({quantization}), and an export has other "
            f"weights; serve the run: imsm serve {run.path.name}"
        )
    model = SiameseForCausalLM.from_pretrained(run.path, device="cpu", dtype=dtype)
    if not type(model.backbone).__module__.startswith("transformers."):
        raise UserError(
            f"run={run.path}: its backbone {type(model.backbone).__name__} is not a class of transformers, which "
            f"other programs could load; serve the run: imsm serve {run.path.name}"
        )
    return model


@torch.inference_mode()
def _log_probabilities(model: PreTrainedModel, tokens: torch.Tensor) -> torch.Tensor:
    """Return the log probabilities of the next token, (1, T, V) in float32."""
    return model(input_ids=tokens).logits.float().log_softmax(-1)


def _write_config(model: PreTrainedModel, path: Path, *, source: str, revision: str | None) -> None:
    """Replace the configuration by the backbone's own, if it is of the same class, with the type of the weights."""
    original = Path(str(cached_file(source, CONFIG_NAME, revision=revision)))
    values = read_json(original, fix="download the backbone again")
    if values.get("architectures") != [type(model).__name__]:
        values = read_json(path, fix="run the command again")
    values.pop("_name_or_path", None)
    values["dtype"] = str(model.dtype).removeprefix("torch.")
    path.write_text(json.dumps(with_earlier_keys(values), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def with_earlier_keys(config: Mapping[str, Any]) -> dict[str, Any]:
    """Add the keys that programs with transformers 4 read, of the same meaning: torch_dtype, rope_theta, rope_scaling.

    Without them such a program would silently use the default RoPE frequency of its model class.
    """
    earlier: dict[str, Any] = {"torch_dtype": config["dtype"]}
    rope = config.get("rope_parameters")
    if isinstance(rope, dict) and "rope_theta" in rope:
        earlier["rope_theta"] = rope["rope_theta"]
        if rope.get("rope_type", "default") != "default":
            earlier["rope_scaling"] = {key: value for key, value in rope.items() if key != "rope_theta"}
    return dict(config) | {key: value for key, value in earlier.items() if key == "torch_dtype" or key not in config}


def write_tokenizer(run: RunDir, folder: Path, *, source: str, revision: str | None) -> None:
    """Write the run's tokenizer, with its chat template only if the run's prompts used it."""
    tokenizer = load_tokenizer(name_or_path=str(run.model))
    if run.identity.exists() and not read_identity(run, {"backbone": dict})["backbone"].get("chat_template", False):
        tokenizer.chat_template = None
    tokenizer.save_pretrained(folder)
    path = folder / TOKENIZER_CONFIG_FILE
    values = read_json(path, fix="run the command again")
    if values.get("tokenizer_class") == _CLASS:
        path.write_text(json.dumps(values | {"tokenizer_class": _EARLIER_CLASS}, indent=2, ensure_ascii=False) + "\n")
    # raised if the backbone has no such file
    with suppress(OSError):
        shutil.copyfile(str(cached_file(source, _SENTENCEPIECE, revision=revision)), folder / _SENTENCEPIECE)
