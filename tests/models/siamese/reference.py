"""The paper's equations for one sequence: two plain models, no cache, no mask."""

from __future__ import annotations

import torch
from peft import PeftModel
from transformers import PreTrainedModel

from imsm.models.adapters.base import attach_adapter
from imsm.models.siamese.model import SiameseForCausalLM
from tests.models.siamese.tiny import ADAPTERS, tiny_backbone


class Reference:
    """An unmodified backbone, a second one with the adapter, and the gate's two matrices."""

    def __init__(self, model: SiameseForCausalLM, architecture: str, method: str) -> None:
        self.original: PreTrainedModel = tiny_backbone(architecture)
        self.tuned: PeftModel = attach_adapter(ADAPTERS[method](), tiny_backbone(architecture)).eval()
        self.tuned.load_state_dict(model.adapted.state_dict())
        self.down, self.up = model.gate.down.weight, model.gate.up.weight

    def hidden_states(self, ids: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return h_o and h_t, each (T, D)."""
        tokens = torch.tensor([ids])
        original = self.original.model(tokens).last_hidden_state[0]
        tuned = self.tuned.base_model.model.model(tokens).last_hidden_state[0]
        return original, tuned

    def logits(self, ids: list[int], query: int) -> torch.Tensor:
        """Return next-token logits from the query's last token on, (T - query + 1, V)."""
        original, tuned = self.hidden_states(ids)
        query_original, query_tuned = original[:query].mean(0), tuned[:query].mean(0)
        rows = []
        for h_o, h_t in zip(original[query - 1 :], tuned[query - 1 :], strict=True):
            inputs = torch.cat([query_original, h_o, h_t, query_tuned])
            gate = 1 / (1 + torch.exp(-(self.up @ (self.down @ inputs))))
            rows.append(gate * h_o + (1 - gate) * h_t)
        return self.original.lm_head(torch.stack(rows))

    def greedy(self, prompt: list[int], *, steps: int) -> list[int]:
        """Decode greedily; every step runs both models over the complete sequence."""
        ids = list(prompt)
        for _ in range(steps):
            ids.append(int(self.logits(ids, len(prompt))[-1].argmax()))
            if ids[-1] == self.original.config.eos_token_id:
                break
        return ids[len(prompt) :]
