"""Which of transformers' causal language models can be interwoven: one row for each, found out.

    python -m scripts.architectures [MODEL_TYPE ...]

Every architecture is built tiny and random. Inside IMSM it has a perturbed LoRA on its linear
layers, and is compared with a computation that shares nothing with the siamese model but the
weights: a second, untouched backbone, the adapted one alone, one sequence at a time without padding
or cache, the gate's formula written out, and the untouched model's own forward for its head.
"""

from __future__ import annotations

import math
import sys
import warnings
from dataclasses import asdict, dataclass
from typing import Any

import torch
import transformers
from peft import LoraConfig
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from imsm.adapters.adapter import Adapter
from imsm.assemble import put_together
from imsm.errors import UserError
from imsm.siamese.body import find_body
from imsm.siamese.model import SiameseForCausalLM
from scripts.tiny_architectures import (
    ARCHITECTURES,
    LAST_SPECIAL,
    VOCABULARY,
    tiny_backbone,
    tiny_configuration,
)

GATE = {
    "_target_": "imsm.siamese.gate.Gate",
    "inputs": ["query_original", "original", "tuned", "query_tuned"],
    "rank": 4,
}
LENGTHS = (11, 7)
NEW_TOKENS = 5
STEPS = 6
CLOSE = 1e-4
"""How far logits may be off, relative to the largest one."""
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
        return Row(name=name, reason=f"not tried: no tiny model of it ({first_line(error)})")
    note = ""
    try:
        model = interwoven(configuration)
    except UserError as error:
        if not getattr(configuration, "is_decoder", True):  # an encoder, unless it is told
            return _as_decoder(name, error)
        return Row(name=name, forward=False, trains=False, generates=False, reason=str(error))
    except Exception as error:
        reason = first_line(error)
        return Row(name=name, forward=False, trains=False, generates=False, reason=reason)
    return _checked(name, Case(model, plain), note)


def _as_decoder(name: str, refusal: UserError) -> Row:
    """The row of an encoder that its configuration makes a causal model."""
    try:
        configuration = tiny_configuration(name, is_decoder=True)
        case = Case(interwoven(configuration), tiny_backbone(configuration))
    except UserError as error:
        refused = f"with is_decoder=true too: {error}"
        return Row(name=name, forward=False, trains=False, generates=False, reason=refused)
    except Exception:  # it has no such switch
        return Row(name=name, forward=False, trains=False, generates=False, reason=str(refusal))
    return _checked(name, case, "with is_decoder=true in its config.json")


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
    if not case.model.config.cached:
        reasons.append("reads the whole text at every step, since it cannot go on from a cache")
    return Row(name=name, reason="; ".join(reasons), **found)


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
    lora = LoraConfig(
        task_type="CAUSAL_LM",
        target_modules="all-linear",
        exclude_modules=excluded,
        r=4,
        lora_alpha=8,
    )
    return put_together(
        tiny_backbone(configuration),
        backbone={"path": configuration.model_type},
        adapter=Adapter(lora),
        gate=GATE,
        pooling="mean",
        stream="interwoven",
        seed=0,
    )


class Case:
    """One architecture: the siamese model, an untouched backbone, a few prompts."""

    def __init__(self, model: SiameseForCausalLM, plain: PreTrainedModel) -> None:
        self.model = model
        self.plain = plain
        generator = torch.Generator().manual_seed(3)
        low, high = LAST_SPECIAL + 1, VOCABULARY - 7  # multimodal models keep the last ones
        self.prompts = [
            torch.randint(low, high, (length,), generator=generator) for length in LENGTHS
        ]
        width = max(LENGTHS)
        self.ids = torch.stack([nn.functional.pad(p, (width - len(p), 0)) for p in self.prompts])
        ones = [torch.ones(len(p), dtype=torch.long) for p in self.prompts]
        self.mask = torch.stack([nn.functional.pad(one, (width - len(one), 0)) for one in ones])

    @torch.no_grad()
    def forward(self) -> str | None:
        """What is wrong with a pass; None if nothing is."""
        told = {"attention_mask": self.mask, "query_mask": self.mask}
        logits = self.model(self.ids, **told).logits
        for index, prompt in enumerate(self.prompts):
            expected = self._logits(prompt, query=len(prompt))
            off = (logits[index, -len(prompt) :] - expected).abs().max() / expected.abs().max()
            if not off < CLOSE:
                return f"logits are off by {off:.0e} of the largest"
        self.model.stream = "original"
        (prompt, *_) = self.prompts
        original = self.model(prompt[None]).logits
        self.model.stream = "tuned"
        tuned = self.model(prompt[None]).logits
        self.model.stream = "interwoven"
        if not torch.equal(original, self.plain(input_ids=prompt[None], use_cache=False).logits):
            return "the original stream is not the untouched model"
        return "the adapter changes nothing" if torch.allclose(original, tuned, rtol=1e-2) else None

    def generates(self) -> str | None:
        """What is wrong with greedy decoding of a padded batch; None if nothing is."""
        answers = self.model.generate(
            self.ids,
            attention_mask=self.mask,
            max_new_tokens=NEW_TOKENS,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
        )
        for prompt, answer in zip(self.prompts, answers[:, max(LENGTHS) :], strict=True):
            text = prompt
            for _ in range(NEW_TOKENS):
                text = torch.cat([text, self._logits(text, query=len(prompt))[-1:].argmax(-1)])
            if answer.tolist() != text[len(prompt) :].tolist():
                return "tokens differ from those of two plain passes"
        return None

    def trains(self) -> str | None:
        """What is wrong with some steps of training; None if nothing is."""
        before = self._original()
        self.model.train()
        trainable = [each for each in self.model.parameters() if each.requires_grad]
        optimizer = torch.optim.AdamW(trainable, lr=1e-2)
        answer = self.mask.bool() & (torch.arange(self.ids.shape[1]) > 6)
        labels = self.ids.where(answer, -100)
        losses = []
        for _ in range(STEPS):
            optimizer.zero_grad()
            loss = self.model(self.ids, attention_mask=self.mask, labels=labels).loss
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        self.model.eval()
        if not all(map(math.isfinite, losses)) and not self._plain_gradients_are_finite(labels):
            return "the model's own gradients are not finite where a batch has padding"
        if not losses[-1] < losses[0]:
            return f"the loss goes from {losses[0]:.2f} to {losses[-1]:.2f}"
        return None if torch.equal(before, self._original()) else "the original stream moved"

    def _plain_gradients_are_finite(self, labels: torch.Tensor) -> bool:
        self.plain.requires_grad_(True)
        self.plain(self.ids, attention_mask=self.mask, labels=labels).loss.backward()
        gradients = [each.grad for each in self.plain.parameters() if each.grad is not None]
        return all(bool(gradient.isfinite().all()) for gradient in gradients)

    @torch.no_grad()
    def _original(self) -> torch.Tensor:
        self.model.stream = "original"
        logits = self.model(self.ids, attention_mask=self.mask).logits
        self.model.stream = "interwoven"
        return logits

    @torch.no_grad()
    def _logits(self, text: torch.Tensor, *, query: int) -> torch.Tensor:
        """Equations 2 to 7 for one sequence whose first ``query`` tokens are the query, (T, V)."""
        memories = [
            find_body(each)(input_ids=text[None], use_cache=False).last_hidden_state[0]
            for each in (self.plain, self.model.backbone)
        ]
        seen = torch.arange(1, len(text) + 1).clamp(max=query)
        queries = [memory.cumsum(0)[seen - 1] / seen[:, None] for memory in memories]
        original, tuned = memories
        down, up = self.model.gate.down.weight, self.model.gate.up.weight
        gate = torch.cat([queries[0], original, tuned, queries[1]], dim=-1) @ down.T @ up.T
        weight = 1 / (1 + torch.exp(-gate))
        return self._head(text, weight * original + (1 - weight) * tuned)

    def _head(self, text: torch.Tensor, memory: torch.Tensor) -> torch.Tensor:
        """The untouched model's own pass over ``text``, its memory exchanged on the way."""

        def exchanged(module: nn.Module, arguments: Any, outputs: Any) -> Any:
            outputs.last_hidden_state = memory[None]
            return outputs

        hook = find_body(self.plain).register_forward_hook(exchanged)
        try:
            return self.plain(input_ids=text[None], use_cache=False).logits[0]
        finally:
            hook.remove()


def first_line(error: Exception) -> str:
    """An error in one line."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:160]}" if text else type(error).__name__


if __name__ == "__main__":
    for found in rows(sys.argv[1:]):
        print(found)
