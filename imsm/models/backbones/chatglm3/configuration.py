"""Configuration of ChatGLM3-6B, which maps the published keys to those of GLM in transformers.

The model type "chatglm" is used by several architectures; only that of ChatGLM3-6B is accepted.
"""

from typing import Any, ClassVar

from huggingface_hub.dataclasses import strict
from transformers.models.glm.configuration_glm import GlmConfig

_VOCAB_SIZE = 65024
_EOS_TOKEN_IDS = [2, 64795, 64797]
"""</s>, <|user|> and <|observation|>: the tokens after which the model's turn ends."""
_REQUIRED: dict[str, tuple[Any, ...]] = {
    "add_bias_linear": (False,),
    "apply_residual_connection_post_layernorm": (False,),
    "fp32_residual_connection": (False,),
    "hidden_dropout": (0.0,),
    "multi_query_attention": (True,),
    "original_rope": (True,),
    "position_encoding_2d": (False,),  # the first ChatGLM-6B
    "post_layer_norm": (True,),
    "pre_seq_len": (None,),  # a trained prefix in the checkpoint
    "quantization_bit": (0, None),
    "rmsnorm": (True,),
    "rope_ratio": (1, 1.0),
    "tie_word_embeddings": (False,),
}
"""Keys that determine the architecture, and their accepted values; the first one is the default."""
_IGNORED = (
    "apply_query_key_layer_scaling",  # scales down, then up by the same factor
    "attention_softmax_in_fp32",
    "auto_map",  # the published code is not executed
    "bias_dropout_fusion",
    "classifier_dropout",
    "prefix_projection",
)


@strict
class ChatGLM3Config(GlmConfig):
    """GlmConfig with the values of ChatGLM3-6B; accepts the published keys too.

    Raises:
        ValueError: the configuration is of another architecture (quantized, long context, the
            first ChatGLM).
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
    # The parallel plans of GLM name modules that do not exist here.
    base_model_tp_plan = None  # type: ignore[assignment]
    base_model_pp_plan = None  # type: ignore[assignment]

    vocab_size: int = _VOCAB_SIZE
    num_hidden_layers: int = 28
    max_position_embeddings: int = 8192
    rms_norm_eps: float = 1e-5
    pad_token_id: int | None = 0
    eos_token_id: int | list[int] | None = 2

    def __post_init__(self, **published: Any) -> None:
        for key, allowed in _REQUIRED.items():
            # Popped, so that transformers does not store keys that no code reads.
            value = published.pop(key, getattr(self, key, allowed[0]))
            if value not in allowed:
                raise ValueError(
                    f"config.json: {key}={value!r} is not supported; ChatGLM3-6B (zai-org/chatglm3-6b) has "
                    f"{key}={allowed[0]!r}"
                )
        for key, name in self.attribute_map.items():
            if key in published:
                setattr(self, name, published.pop(key))
        for key in _IGNORED:
            published.pop(key, None)
        # The published config.json lists </s> only; generation would not stop at the end of a turn.
        if self.vocab_size == _VOCAB_SIZE and self.eos_token_id == 2:
            self.eos_token_id = list(_EOS_TOKEN_IDS)
        super().__post_init__(**published)
