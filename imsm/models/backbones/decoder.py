"""Find the decoder of a causal language model: the part before the head."""

from torch import nn
from transformers import PreTrainedModel

from imsm.utils.errors import UserError


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


def decoder_layers(backbone: PreTrainedModel) -> list[nn.Module]:
    """Return the decoder's layers in the order of a forward pass.

    Raises:
        UserError: the model has no list of them.
    """
    count = backbone.config.get_text_config(decoder=True).num_hidden_layers
    for module in find_decoder(backbone).modules():
        if isinstance(module, nn.ModuleList) and len(module) == count:
            return list(module)
    raise UserError(
        f"backbone={type(backbone).__name__}: has no list of decoder layers, which engine=fsdp2 and "
        "trainer.compile_layers=true need; set engine=zero3, or omit trainer.compile_layers"
    )
