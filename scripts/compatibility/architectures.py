"""Test which causal language models of transformers can be interwoven.

    python -m scripts.compatibility.architectures [MODEL_TYPE ...]

Every architecture is built tiny and random, wrapped in a siamese model with a perturbed LoRA on
its linear layers, and compared with a reference computation (scripts/bench/reference.py).
"""

from __future__ import annotations

import re
import sys
import warnings
from dataclasses import asdict, dataclass
from typing import Any

import torch
import transformers
from peft import LoraConfig
from transformers import PretrainedConfig

from imsm.models.adapters.base import AdapterSpec
from imsm.models.builder import wrap_backbone
from imsm.models.siamese.model import SiameseForCausalLM
from imsm.utils.errors import UserError
from scripts.bench.reference import Case
from scripts.compatibility.tiny_models import ARCHITECTURES, tiny_backbone, tiny_configuration

GATE = {
    "_target_": "imsm.models.siamese.gate.Gate",
    "inputs": ["query_original", "original", "tuned", "query_tuned"],
    "rank": 4,
}
EXCLUDED = r".*(router|out_proj|conv1d)"
"""Linear layers that PEFT cannot adapt in some models: routers that return a tuple (Llama 4, PhiMoE),
and weights that Mamba kernels read directly."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """Result for one architecture; None where it was not tested.

    Attributes:
        name: model type.
        forward: the interwoven logits equal the reference with left padding, and the original
            stream is the unmodified model.
        trains: the loss falls and the original stream does not change.
        generates: `generate()` on a padded batch gives the reference tokens of each prompt.
        reason: why a check failed, or a condition.
    """

    name: str
    forward: bool | None = None
    trains: bool | None = None
    generates: bool | None = None
    reason: str = ""


def rows(names: list[str] | None = None) -> list[dict[str, Any]]:
    """Test the named architectures, by default all of them."""
    warnings.filterwarnings("ignore")
    transformers.utils.logging.set_verbosity_error()
    return [asdict(row(name)) for name in names or ARCHITECTURES]


def row(name: str) -> Row:
    """Test one architecture."""
    try:
        configuration = tiny_configuration(name)
        plain = tiny_backbone(configuration)
    except Exception as error:  # any error of building the model is the reason in the row
        return Row(name=name, reason=f"no tiny model can be built ({short_error(error)})")
    try:
        case = Case(interwoven(configuration), plain)
    except UserError as error:
        if getattr(configuration, "is_decoder", True):
            return _unsupported(name, rejection_reason(error))
        return _as_decoder(name, rejection_reason(error))
    except Exception as error:
        return _unsupported(name, short_error(error))
    return _checked(name, case, "")


def _as_decoder(name: str, reason: str) -> Row:
    """Test an encoder that its configuration turns into a causal model."""
    try:
        configuration = tiny_configuration(name, is_decoder=True)
        case = Case(interwoven(configuration), tiny_backbone(configuration))
    except UserError as error:
        second = rejection_reason(error)
        return _unsupported(name, second if second == reason else f"with is_decoder=true: {second}")
    except Exception:  # the architecture has no such option
        return _unsupported(name, reason)
    return _checked(name, case, "with is_decoder=true in its config.json")


def _unsupported(name: str, reason: str) -> Row:
    return Row(name=name, forward=False, trains=False, generates=False, reason=reason)


def _checked(name: str, case: Case, note: str) -> Row:
    reasons = [note] if note else []
    results: dict[str, bool] = {}
    for check in (case.forward, case.generates, case.trains):  # the last one changes the model
        try:
            wrong = check()
        except Exception as error:  # any error is a reason in the row
            wrong = short_error(error)
        results[check.__name__] = wrong is None
        if wrong is not None:
            reasons.append(f"{check.__name__}: {wrong}")
    excluded = _excluded_layers(case.model)
    if excluded:
        reasons.append(f"PEFT cannot adapt its {', '.join(excluded)}")
    if not case.model.config.supports_cache:
        reasons.append("processes the full text at every step, because it cannot continue from a KV cache")
    return Row(name=name, reason="; ".join(reasons), **results)


def _excluded_layers(model: SiameseForCausalLM) -> list[str]:
    """Names of the layers that LoRA had to exclude."""
    excluded = model.adapted.peft_config["default"].exclude_modules
    names = [name for name, _ in model.backbone.named_modules() if excluded]
    return sorted({name.rpartition(".")[2] for name in names if re.fullmatch(excluded, name)})


def interwoven(configuration: PretrainedConfig) -> SiameseForCausalLM:
    """Build a siamese model with LoRA on all supported linear layers; perturb adapter and gate.

    Raises:
        UserError: the backbone is not supported.
    """
    try:
        model = _build(configuration, excluded=None)
        with torch.no_grad():
            model.adapted(torch.tensor([[3, 4]]))
    except (UserError, AttributeError) as error:
        if isinstance(error, UserError) and "adapter" not in str(error):
            raise
        model = _build(configuration, excluded=EXCLUDED)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def _build(configuration: PretrainedConfig, *, excluded: str | None) -> SiameseForCausalLM:
    lora = LoraConfig(task_type="CAUSAL_LM", target_modules="all-linear", exclude_modules=excluded, r=4, lora_alpha=8)
    return wrap_backbone(
        tiny_backbone(configuration),
        backbone={"name_or_path": configuration.model_type},
        adapter=AdapterSpec(lora),
        gate=GATE,
        pooling="mean",
        stream="interwoven",
        seed=0,
    )


def rejection_reason(error: UserError) -> str:
    """Return the reason in an error message, without the model's name and the advice."""
    reason = str(error).partition(" cannot be interwoven: ")[2].partition("; choose a model")[0]
    return reason or str(error)


def short_error(error: Exception) -> str:
    """Return an error in one line of at most 160 characters."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:160]}" if text else type(error).__name__


if __name__ == "__main__":
    for result in rows(sys.argv[1:]):
        print(result)
