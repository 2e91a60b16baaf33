"""ChatGLM3-6B as a native model, which loads the published weights without the published code.

    x = Embedding(tokens)
    x = x + dense(Attention(RMSNorm(x)))        q, k, v from one matrix, rotary on half of each head
    x = x + dense_4h_to_h(silu(a) * b)          a, b = halves of dense_h_to_4h(RMSNorm(x))
    h = RMSNorm(x)          logits = output_layer(h)

GLM of transformers has the same architecture (rotary positions on interleaved pairs, KV cache,
masks, attention kernels). This module adds the fused `query_key_value`, the published module names
(needed to load the published files and by PEFT targets) and the published configuration keys.

Source: configuration, weight names and shapes of the published model (zai-org/chatglm3-6b).
Legend: B batch, T positions, D hidden size, H query heads, G key-value heads, S head size, V
vocabulary size.
"""

from operator import attrgetter
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, Cache
from transformers.activations import ACT2FN
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.glm.modeling_glm import (
    GlmAttention,
    GlmDecoderLayer,
    GlmForCausalLM,
    GlmMLP,
    GlmModel,
    GlmPreTrainedModel,
    GlmRMSNorm,
    GlmRotaryEmbedding,
    apply_rotary_pos_emb,
    eager_attention_forward,
)

from imsm.models.backbones.chatglm3.configuration import ChatGLM3Config
from imsm.models.backbones.chatglm3.tokenization import ChatGLMTokenizer


def _published(path: str) -> Any:
    """Alias for the submodule at ``path``, which GLM of transformers accesses by another name."""
    return property(attrgetter(path))


class ChatGLM3Attention(GlmAttention):
    """Grouped-query attention with one matrix for q, k and v: (B, T, D) -> (B, T, D)."""

    def __init__(self, config: ChatGLM3Config, layer_idx: int) -> None:
        # Not GlmAttention.__init__, which would allocate separate projections.
        nn.Module.__init__(self)
        heads, groups = config.num_attention_heads, config.num_key_value_heads
        size = config.head_dim
        assert groups is not None and size is not None
        self.config = config
        self.layer_idx: int = layer_idx
        self.head_dim = size
        self.num_key_value_groups = heads // groups
        self.scaling = size**-0.5
        self.attention_dropout = config.attention_dropout
        self.is_causal = True
        self.widths = [heads * size, groups * size, groups * size]
        self.query_key_value = nn.Linear(config.hidden_size, sum(self.widths), bias=config.attention_bias)
        self.dense = nn.Linear(heads * size, config.hidden_size, bias=False)

    def forward(
        self,
        hidden_states: torch.Tensor,
        position_embeddings: tuple[torch.Tensor, torch.Tensor] | None = None,
        attention_mask: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        **attention: Any,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """See `GlmAttention.forward`; ``attention``: further arguments of the attention kernel."""
        assert position_embeddings is not None
        batch, length = hidden_states.shape[:2]
        # Sizes differ: few key-value heads serve many query heads, so chunk(3) would be wrong.
        parts = self.query_key_value(hidden_states).split(self.widths, dim=-1)
        query, key, value = (  # (B, H or G, T, S)
            part.view(batch, length, -1, self.head_dim).transpose(1, 2) for part in parts
        )
        query, key = apply_rotary_pos_emb(query, key, *position_embeddings)
        # Keys are cached after the rotation, as in GLM of transformers.
        if past_key_values is not None:
            key, value = past_key_values.update(key, value, self.layer_idx)
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention_forward)
        mixed, weights = attend(
            self,
            query,
            key,
            value,
            attention_mask,
            dropout=self.attention_dropout if self.training else 0.0,
            scaling=self.scaling,
            **attention,
        )
        return self.dense(mixed.reshape(batch, length, -1)), weights


class ChatGLM3MLP(GlmMLP):
    """`GlmMLP` with the published module names."""

    gate_up_proj = _published("dense_h_to_4h")
    down_proj = _published("dense_4h_to_h")

    def __init__(self, config: ChatGLM3Config) -> None:
        nn.Module.__init__(self)
        self.config = config
        self.dense_h_to_4h = nn.Linear(config.hidden_size, 2 * config.intermediate_size, bias=False)
        self.dense_4h_to_h = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)
        self.activation_fn = ACT2FN[config.hidden_act]


class ChatGLM3Block(GlmDecoderLayer):
    """`GlmDecoderLayer` with the published module names."""

    self_attn = _published("self_attention")

    def __init__(self, config: ChatGLM3Config, layer_idx: int) -> None:
        nn.Module.__init__(self)
        self.hidden_size = config.hidden_size
        self.input_layernorm = GlmRMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.self_attention = ChatGLM3Attention(config, layer_idx)
        self.post_attention_layernorm = GlmRMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.mlp = ChatGLM3MLP(config)


class ChatGLM3PreTrainedModel(GlmPreTrainedModel):
    """Attributes shared by both models."""

    config_class = ChatGLM3Config
    base_model_prefix = "transformer"
    _no_split_modules = ["ChatGLM3Block"]  # noqa: RUF012
    _can_record_outputs = {"hidden_states": ChatGLM3Block, "attentions": ChatGLM3Attention}  # noqa: RUF012
    # The published files contain this buffer; GlmRotaryEmbedding computes it in float32.
    _keys_to_ignore_on_load_unexpected = [r"rotary_pos_emb\.inv_freq"]  # noqa: RUF012


class ChatGLM3Model(ChatGLM3PreTrainedModel, GlmModel):
    """Token ids to hidden states after the final norm, (B, T, D).

    Contains the LM head (`output_layer`) as the published files do, but does not call it.
    """

    embed_tokens = _published("embedding.word_embeddings")
    layers = _published("encoder.layers")
    norm = _published("encoder.final_layernorm")
    rotary_emb = _published("rotary_pos_emb")

    def __init__(self, config: ChatGLM3Config) -> None:
        GlmPreTrainedModel.__init__(self, config)
        width = config.hidden_size
        self.embedding = nn.ModuleDict({"word_embeddings": nn.Embedding(config.vocab_size, width)})
        self.rotary_pos_emb = GlmRotaryEmbedding(config=config)
        blocks = [ChatGLM3Block(config, index) for index in range(config.num_hidden_layers)]
        self.encoder = nn.ModuleDict(
            {"layers": nn.ModuleList(blocks), "final_layernorm": GlmRMSNorm(width, eps=config.rms_norm_eps)}
        )
        self.output_layer = nn.Linear(width, config.vocab_size, bias=False)
        self.gradient_checkpointing = False
        self.post_init()

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the token embeddings, (V, D)."""
        self.embedding["word_embeddings"] = value


class ChatGLM3ForCausalLM(ChatGLM3PreTrainedModel, GlmForCausalLM):
    """ChatGLM3 with its LM head: logits (B, T, V)."""

    model = _published("transformer")
    lm_head = _published("transformer.output_layer")
    # The tied weights and parallel plans of GLM name modules that do not exist here.
    _tied_weights_keys = None  # type: ignore[assignment]
    _tp_plan = _pp_plan = _fsdp_plan = None  # type: ignore[assignment]

    def __init__(self, config: ChatGLM3Config) -> None:
        GlmPreTrainedModel.__init__(self, config)
        self.transformer = ChatGLM3Model(config)
        self.vocab_size = config.vocab_size
        self.post_init()

    def set_output_embeddings(self, new_embeddings: nn.Linear) -> None:
        """Replace the LM head, (V, D)."""
        self.transformer.output_layer = new_embeddings


# exist_ok, because a second import of this file (a reload in a test) must not fail.
AutoConfig.register(ChatGLM3Config.model_type, ChatGLM3Config, exist_ok=True)
AutoModelForCausalLM.register(ChatGLM3Config, ChatGLM3ForCausalLM, exist_ok=True)
AutoTokenizer.register(ChatGLM3Config, tokenizer_class=ChatGLMTokenizer, exist_ok=True)
