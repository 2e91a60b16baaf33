"""Where a causal language model makes its memories: the part of it that stands before the head."""

from __future__ import annotations

from torch import nn
from transformers import PreTrainedModel


def find_decoder(backbone: PreTrainedModel) -> PreTrainedModel:
    """The part of ``backbone`` that turns tokens into memories, (B, T) -> (B, T, D).

    transformers' `get_decoder()` finds it by the names that such parts usually have; where another
    part has that name (ModernBERT's head is called `decoder`), it is the model inside ``backbone``
    that holds the token embeddings.

    Raises:
        ValueError: there is none.
    """
    embeddings = backbone.get_input_embeddings()
    for part in (backbone.get_decoder(), backbone.base_model, *backbone.children()):
        if part is not backbone and _reads_tokens(part, embeddings):
            return part
    raise ValueError(f"{type(backbone).__name__} has no body apart from its head")


def _reads_tokens(part: nn.Module, embeddings: nn.Module) -> bool:
    return isinstance(part, PreTrainedModel) and any(each is embeddings for each in part.modules())
