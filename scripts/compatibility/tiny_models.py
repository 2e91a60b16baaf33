"""Tiny random versions of the causal language models of transformers.

A configuration takes those fields of `SMALL` that it has; `OVERRIDES` holds values specific to one
architecture.
"""

from __future__ import annotations

from dataclasses import fields, is_dataclass
from typing import Any

import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from imsm.models.backbones.loading import disable_dropout

ARCHITECTURES = sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
"""The model types of transformers' causal language models."""

MOST_PARAMETERS = 10_000_000
VOCABULARY = 97
LAST_SPECIAL = 2
"""Tokens up to this id are special."""

_WIDTHS = (
    *("hidden_size", "d_model", "n_embd", "emb_dim", "embedding_size", "backbone_hidden_size"),
    *("ffn_dim", "intermediate_size", "decoder_ffn_dim", "encoder_ffn_dim", "dff", "dim_ff"),
    *("ffn_hidden_size", "feed_forward_size", "d_inner", "projection_dim", "prompt_mid_dim"),
    *("dense_intermediate_size", "intermediate_size_mlp", "output_dim", "input_embedding_size"),
    *("output_embedding_size", "pronunciation_embed_dim", "shape_embed_dim", "router_hidden_size"),
)
_NARROW = (
    *("moe_intermediate_size", "shared_expert_intermediate_size", "expert_ffn_hidden_size"),
    *("shared_intermediate_size", "moe_shared_expert_intermediate_size", "q_lora_rank"),
    *("shared_experts_intermediate_size", "kv_lora_rank", "o_lora_rank", "laurel_rank"),
    *("hc_lowrank", "adapter_rank", "ssm_state_size", "mamba_d_state", "state_size"),
    *("hidden_size_per_layer_input", "gated_norm_rank", "d_rel", "rel_extent"),
)
_LAYERS = (
    *("num_hidden_layers", "n_layer", "n_layers", "num_layers", "decoder_layers"),
    *("encoder_layers", "num_encoder_layers", "num_decoder_layers", "depth"),
)
_HEADS = (
    *("num_attention_heads", "n_head", "n_heads", "num_heads", "decoder_attention_heads"),
    *("encoder_attention_heads", "num_encoder_attention_heads", "num_decoder_attention_heads"),
    *("attention_heads", "swa_num_attention_heads", "index_n_heads", "linear_num_value_heads"),
)
_EXPERTS = ("num_experts", "n_routed_experts", "num_local_experts", "moe_num_experts")
_CHOSEN = ("num_experts_per_tok", "moe_topk", "moe_k", "top_k_experts")
_POSITIONS = ("max_position_embeddings", "n_positions", "max_seq_len", "n_ctx", "context_length")
_ONE = ("n_group", "topk_group", "n_groups", "mamba_n_groups", "mamba_ngroups", "o_groups")
_HEAD_WIDTHS = (
    *("head_dim", "v_head_dim", "dim_head", "kv_channels", "swa_head_dim", "index_head_dim"),
    *("linear_key_head_dim", "linear_value_head_dim", "linear_head_dim", "attention_head_size"),
    *("mamba_head_dim", "num_channels_latents"),
)
_TYPES = ("pronunciation_vocab_size", "shape_vocab_size", "vocab_size_per_layer_input")

SMALL: dict[str, Any] = {
    **dict.fromkeys(_WIDTHS, 32),
    **dict.fromkeys(_NARROW, 16),
    **dict.fromkeys(_LAYERS, 2),
    **dict.fromkeys(_HEADS, 4),
    **dict.fromkeys(_EXPERTS, 4),
    **dict.fromkeys(_CHOSEN, 2),
    **dict.fromkeys(_POSITIONS, 64),
    **dict.fromkeys(_ONE, 1),
    **dict.fromkeys(_HEAD_WIDTHS, 8),
    **dict.fromkeys(_TYPES, VOCABULARY),
    "vocab_size": VOCABULARY,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "num_key_value_heads": 2,
    "swa_num_key_value_heads": 2,
    "linear_num_key_heads": 2,
    "linear_num_heads": 4,
    "sliding_window": 8,
    "sliding_window_size": 8,
    "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 4,
    "rotary_dim": 4,
    "chunk_size": 8,
    "mamba_chunk_size": 8,
    "image_token_id": 91,
    "image_token_index": 91,
    "video_token_id": 92,
    "audio_token_id": 93,
    "image_size": 28,
    "patch_size": 14,
}
"""Small values for the fields that architectures have in common."""

_ATTENTION_LAST = {"layer_types": ["linear_attention", "full_attention"]}
_LATENT = {"head_dim": 4, "num_key_value_heads": 4}  # the rotary part of a head, in every head
_EIGHT_MAMBA_HEADS = {"mamba_n_heads": 8, "mamba_d_head": 8}
_SHARED_LAYER = {"layers_block_type": ["mamba", "hybrid", "hybrid"], "num_hidden_layers": 3, "num_key_value_heads": 4}
OVERRIDES: dict[str, dict[str, Any]] = {
    **dict.fromkeys(
        (
            *("axk1", "axk2", "deepseek_v2", "deepseek_v3", "deepseek_v32", "glm4_moe_lite"),
            *("glm_moe_dsa", "longcat_flash", "minicpm3", "youtu"),
        ),
        _LATENT,
    ),
    **dict.fromkeys(("qwen3_next", "qwen3_5_text", "qwen3_5_moe_text", "olmo_hybrid"), _ATTENTION_LAST),
    "bailing_hybrid": {"layer_group_size": 2, "num_key_value_heads": 4},
    "bamba": {**_EIGHT_MAMBA_HEADS, "attn_layer_indices": [1]},
    "cohere_compass_text": {
        "layer_types": ["sliding_attention", "full_attention"],
        "rope_parameters": {
            "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
            "full_attention": {"rope_type": "default", "rope_theta": 1e4},
        },
    },
    "dbrx": {"attn_config": {"kv_n_heads": 2, "rope_theta": 1e4, "clip_qkv": 8}},
    "dots1": {"n_shared_experts": 1},
    "dots3_note_text": _LATENT,
    "falcon_h1": {**_EIGHT_MAMBA_HEADS, "mamba_d_ssm": 64},
    "gemma3n_text": {"num_kv_shared_layers": 0},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "granitemoehybrid": {**_EIGHT_MAMBA_HEADS, "layer_types": ["mamba", "attention"]},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "kimi_linear": {**_ATTENTION_LAST, **_LATENT},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"], "num_dense_layers": 1},
    "lfm3": {"layer_types": ["conv", "full_attention"]},
    "mamba2": {"num_heads": 8},
    "moshi": {"sliding_window": 64},  # its cache uses the window, its mask does not
    "qwen4_exp_text": {
        **_ATTENTION_LAST,
        "indexer_n_heads": 4,
        "indexer_kv_heads": 1,
        "indexer_head_dim": 8,
        "indexer_budget": 64,
        "indexer_compress_ratio": 2,
    },
    "recurrent_gemma": {"num_hidden_layers": 3, "num_key_value_heads": None},
    "reformer": {"is_decoder": True, "axial_pos_shape": [8, 8], "axial_pos_embds_dim": [16, 16]},
    "xmod": {"default_language": "en_XX", "languages": ["en_XX"]},
    "zamba": {"layers_block_type": ["mamba", "hybrid", "hybrid"], "num_hidden_layers": 3, "num_key_value_heads": 4},
    "zamba2": {"layers_block_type": ["mamba", "hybrid", "hybrid"], "num_hidden_layers": 3, "num_key_value_heads": 4},
    "zaya": {"num_experts_per_tok": 1},
}
"""Corrections of `SMALL` by architecture."""


def tiny_configuration(model_type: str, **particular: Any) -> PretrainedConfig:
    """Return a configuration with few parameters, including nested text and vision configurations.

    Args:
        model_type: as in `config.json`.
        particular: fields that take precedence over `SMALL` and `OVERRIDES`.
    """
    return _small(CONFIG_MAPPING[model_type], {**OVERRIDES.get(model_type, {}), **particular})


def _small(config_class: type[PretrainedConfig], particular: dict[str, Any]) -> PretrainedConfig:
    names = {field.name for field in fields(config_class)} if is_dataclass(config_class) else set()
    names |= set(config_class.attribute_map)
    values = {name: value for name, value in SMALL.items() if name in names}
    if config_class.sub_configs:
        defaults = config_class()
        for name in config_class.sub_configs:
            nested = type(getattr(defaults, name))  # the default type if the field accepts several
            if issubclass(nested, PretrainedConfig):
                values[name] = _small(nested, OVERRIDES.get(nested.model_type, {}))
    return config_class(**{**values, **particular})


def tiny_backbone(configuration: PretrainedConfig) -> PreTrainedModel:
    """Return the same random model in every call: frozen, without dropout, with sharp attention.

    Raises:
        ValueError: the model is not tiny; the message contains its size.
    """
    with torch.device("meta"):
        size = sum(p.numel() for p in AutoModelForCausalLM.from_config(configuration).parameters())
    if size > MOST_PARAMETERS:
        raise ValueError(f"even the smallest configuration tried has {size / 1e6:,.0f}M parameters")
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(configuration)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1 and "embed" not in name:
                parameter.mul_(4)
    disable_dropout(model)
    return model.requires_grad_(False).eval()
