"""Logits of a tiny siamese model."""

from __future__ import annotations

import torch

from imsm.models.siamese.model import SiameseForCausalLM
from tests.models.siamese.tiny import padded, prompts


def logits(model: SiameseForCausalLM, *, stream: str | None = None) -> torch.Tensor:
    """Return the logits at every token of the prompts, (tokens, V)."""
    ids, mask = padded(prompts(), side="right")
    model.stream = stream or model.stream
    query = {"query_mask": mask} if model.stream == "interwoven" else {}
    with torch.no_grad():
        found = model(ids, attention_mask=mask, **query).logits
    return found[mask.bool()]


def both_streams(model: SiameseForCausalLM) -> tuple[torch.Tensor, torch.Tensor]:
    return logits(model, stream="original"), logits(model, stream="tuned")
