"""One tiny architecture inside IMSM against an independent computation: passes, texts, training.

The computation shares nothing with the siamese model but the weights: a second, untouched backbone,
the adapted one alone, one sequence at a time without padding or cache, the gate's formula written
out, and the untouched model's own forward for its head.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from imsm.models.backbones.decoder import find_decoder
from imsm.models.siamese.model import SiameseForCausalLM
from scripts.compatibility.tiny_models import LAST_SPECIAL, VOCABULARY

LENGTHS = (11, 7)
NEW_TOKENS = 5
STEPS = 6
CLOSE = 1e-4
"""How far logits may be off, relative to the largest one."""


class Case:
    """One architecture: the siamese model, an untouched backbone, a few prompts."""

    def __init__(self, model: SiameseForCausalLM, plain: PreTrainedModel) -> None:
        self.model = model
        self.plain = plain
        generator = torch.Generator().manual_seed(3)
        low, high = LAST_SPECIAL + 1, VOCABULARY - 7  # multimodal models keep the last ones
        self.prompts = [torch.randint(low, high, (length,), generator=generator) for length in LENGTHS]
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
            find_decoder(each)(input_ids=text[None], use_cache=False).last_hidden_state[0]
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

        hook = find_decoder(self.plain).register_forward_hook(exchanged)
        try:
            return self.plain(input_ids=text[None], use_cache=False).logits[0]
        finally:
            hook.remove()
