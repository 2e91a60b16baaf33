"""ChatGLM3-6B's configuration: the published keys, under the names that transformers' GLM reads.

The name "chatglm" in a config.json stands for a family with several architectures; one that this
port does not compute is refused.
"""

from __future__ import annotations

from typing import Any, ClassVar

from huggingface_hub.dataclasses import strict
from transformers.models.glm.configuration_glm import GlmConfig

_PADDED_VOCABULARY = 65024
_ENDS = [2, 64795, 64797]
"""</s>, <|user|> and <|observation|>: who follows them is not the model (published vocabulary)."""
_DEMANDED: dict[str, tuple[Any, ...]] = {
    "add_bias_linear": (False,),
    "apply_residual_connection_post_layernorm": (False,),
    "fp32_residual_connection": (False,),
    "hidden_dropout": (0.0,),
    "multi_query_attention": (True,),
    "original_rope": (True,),
    "position_encoding_2d": (False,),  # the first ChatGLM-6B
    "post_layer_norm": (True,),
    "pre_seq_len": (None,),  # a prefix trained into the checkpoint
    "quantization_bit": (0, None),
    "rmsnorm": (True,),
    "rope_ratio": (1, 1.0),
    "tie_word_embeddings": (False,),
}
"""What a published configuration may say of these: the family has members of other shapes."""
_WITHOUT_EFFECT = (
    "apply_query_key_layer_scaling",  # scales down and up again
    "attention_softmax_in_fp32",
    "auto_map",  # the published code is not run
    "bias_dropout_fusion",
    "classifier_dropout",
    "prefix_projection",
)


@strict
class ChatGLM3Config(GlmConfig):
    """GLM's configuration with ChatGLM3-6B's values; the published keys are understood too.

    Raises:
        ValueError: a published configuration of another shape (a quantised one, one with long
            positions, the first ChatGLM).
    """

    model_type = "chatglm"
    attribute_map: ClassVar[dict[str, str]] = {
        "add_qkv_bias": "attention_bias",
        "ffn_hidden_size": "intermediate_size",
        "kv_channels": "head_dim",
        "layernorm_epsilon": "rms_norm_eps",
        "multi_query_group_num": "num_key_value_heads",
        "num_layers": "num_hidden_layers",
        "padded_vocab_size": "vocab_size",
        "seq_length": "max_position_embeddings",
    }
    base_model_tp_plan = None  # type: ignore[assignment]  # GLM's plans name other modules
    base_model_pp_plan = None  # type: ignore[assignment]

    vocab_size: int = _PADDED_VOCABULARY
    num_hidden_layers: int = 28
    max_position_embeddings: int = 8192
    rms_norm_eps: float = 1e-5
    pad_token_id: int | None = 0
    eos_token_id: int | list[int] | None = 2

    def __post_init__(self, **published: Any) -> None:
        for key, allowed in _DEMANDED.items():
            value = published.pop(key, getattr(self, key, allowed[0]))
            if value not in allowed:
                raise ValueError(
                    f"config.json has {key}={value!r}; this ChatGLM3 port knows {key}="
                    f"{allowed[0]!r} only (zai-org/chatglm3-6b)"
                )
        for key, name in self.attribute_map.items():
            if key in published:
                setattr(self, name, published.pop(key))
        for key in _WITHOUT_EFFECT:
            published.pop(key, None)
        if self.vocab_size == _PADDED_VOCABULARY and self.eos_token_id == 2:
            self.eos_token_id = list(_ENDS)
        super().__post_init__(**published)
