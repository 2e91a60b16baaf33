"""Find the decoder of a causal language model: the part before the head."""

from transformers import PreTrainedModel


def find_decoder(backbone: PreTrainedModel) -> PreTrainedModel:
    """Return the part of ``backbone`` that maps tokens (B, T) to hidden states (B, T, D).

    Raises:
        ValueError: the head cannot be separated.
    """
    embeddings = backbone.get_input_embeddings()
    # get_decoder() goes by attribute names, which can be wrong: ModernBERT's head is named `decoder`
    for part in (backbone.get_decoder(), backbone.base_model, *backbone.children()):
        holds_embeddings = any(module is embeddings for module in part.modules())
        if holds_embeddings and isinstance(part, PreTrainedModel) and part is not backbone:
            return part
    raise ValueError(f"{type(backbone).__name__}: has no decoder separate from its head")
