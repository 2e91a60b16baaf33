"""Which of transformers' causal language models can be interwoven: one row for each, found out.

    python -m scripts.compatibility.architectures [MODEL_TYPE ...]

Every architecture is built tiny and random. Inside IMSM it has a perturbed LoRA on its linear
layers, and is compared with a computation of its own (scripts/bench/reference.py).
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
"""Linear layers that PEFT cannot adapt in some models: a router that is a linear layer and returns
a tuple (Llama 4, PhiMoE), and what Mamba's kernels read past the layer."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """What was found out; None where it was not tried.

    ``forward``: the interwoven logits are the computed ones, padded on the left; the original
    stream is the untouched model. ``trains``: the loss falls, and the original stream stays what it
    was. ``generates``: `generate()` gives a padded batch the tokens that the computation gives each
    prompt alone. ``reason``: why not, or under which condition.
    """

    name: str
    forward: bool | None = None
    trains: bool | None = None
    generates: bool | None = None
    reason: str = ""


def rows(names: list[str] | None = None) -> list[dict[str, Any]]:
    """A row for every architecture, in the order of their names."""
    warnings.filterwarnings("ignore")
    transformers.utils.logging.set_verbosity_error()
    return [asdict(row(name)) for name in names or ARCHITECTURES]


def row(name: str) -> Row:
    """One architecture's row."""
    try:
        configuration = tiny_configuration(name)
        plain = tiny_backbone(configuration)
    except Exception as error:  # whatever hinders a model from being built is the row's reason
        return Row(name=name, reason=f"no tiny model of it can be built ({first_line(error)})")
    try:
        case = Case(interwoven(configuration), plain)
    except UserError as error:
        if getattr(configuration, "is_decoder", True):
            return _refused(name, why(error))
        return _as_decoder(name, why(error))  # an encoder, unless it is told
    except Exception as error:
        return _refused(name, first_line(error))
    return _checked(name, case, "")


def _as_decoder(name: str, refusal: str) -> Row:
    """The row of an encoder that its configuration makes a causal model."""
    try:
        configuration = tiny_configuration(name, is_decoder=True)
        case = Case(interwoven(configuration), tiny_backbone(configuration))
    except UserError as error:
        second = why(error)
        return _refused(name, second if second == refusal else f"with is_decoder=true: {second}")
    except Exception:  # it has no such switch
        return _refused(name, refusal)
    return _checked(name, case, "with is_decoder=true in its config.json")


def _refused(name: str, reason: str) -> Row:
    return Row(name=name, forward=False, trains=False, generates=False, reason=reason)


def _checked(name: str, case: Case, note: str) -> Row:
    reasons = [note] if note else []
    found: dict[str, bool] = {}
    for check in (case.forward, case.generates, case.trains):  # the last one changes the model
        try:
            wrong = check()
        except Exception as error:  # likewise: a row says what happened
            wrong = first_line(error)
        found[check.__name__] = wrong is None
        if wrong is not None:
            reasons.append(f"{check.__name__}: {wrong}")
    left_out = _left_out(case.model)
    if left_out:
        reasons.append(f"PEFT cannot adapt its {', '.join(left_out)}")
    if not case.model.config.supports_cache:
        reasons.append("reads the whole text at every step, since it cannot go on from a cache")
    return Row(name=name, reason="; ".join(reasons), **found)


def _left_out(model: SiameseForCausalLM) -> list[str]:
    """What the layers are called that LoRA had to leave out."""
    excluded = model.adapted.peft_config["default"].exclude_modules
    names = [name for name, _ in model.backbone.named_modules() if excluded]
    return sorted({name.rpartition(".")[2] for name in names if re.fullmatch(excluded, name)})


def interwoven(configuration: PretrainedConfig) -> SiameseForCausalLM:
    """A siamese model with LoRA on every linear layer that takes it, adapter and gate perturbed.

    Raises:
        UserError: IMSM refuses the backbone.
    """
    try:
        model = _assembled(configuration, excluded=None)
        with torch.no_grad():
            model.adapted(torch.tensor([[3, 4]]))
    except (UserError, AttributeError) as error:
        if isinstance(error, UserError) and "adapter" not in str(error):
            raise
        model = _assembled(configuration, excluded=EXCLUDED)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def _assembled(configuration: PretrainedConfig, *, excluded: str | None) -> SiameseForCausalLM:
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


def why(refusal: UserError) -> str:
    """The reason in a refusal, without the model's name and the advice."""
    reason = str(refusal).partition(" cannot be a backbone: ")[2].partition(". Choose another")[0]
    return reason or str(refusal)


def first_line(error: Exception) -> str:
    """An error in one line."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:160]}" if text else type(error).__name__


if __name__ == "__main__":
    for found in rows(sys.argv[1:]):
        print(found)
