"""A tiny ChatGLM3 as it is published: sharded weights, their index, configuration, tokenizer."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from sentencepiece import SentencePieceTrainer

PREFIX = "transformer."
SIZES = {
    "padded_vocab_size": 512,
    "hidden_size": 32,
    "num_layers": 3,
    "num_attention_heads": 4,
    "multi_query_group_num": 2,
    "kv_channels": 16,  # 4 * 16 is not the width: a port that mixes them up cannot pass
    "ffn_hidden_size": 48,
    "seq_length": 256,
}
PUBLISHED: dict[str, Any] = {
    "model_type": "chatglm",
    "architectures": ["ChatGLMModel"],
    "auto_map": {
        "AutoConfig": "configuration_chatglm.ChatGLMConfig",
        "AutoModel": "modeling_chatglm.ChatGLMForConditionalGeneration",
        "AutoModelForCausalLM": "modeling_chatglm.ChatGLMForConditionalGeneration",
    },
    "add_bias_linear": False,
    "add_qkv_bias": True,
    "apply_query_key_layer_scaling": True,
    "apply_residual_connection_post_layernorm": False,
    "attention_dropout": 0.0,
    "attention_softmax_in_fp32": True,
    "bias_dropout_fusion": True,
    "classifier_dropout": None,
    "eos_token_id": 2,
    "fp32_residual_connection": False,
    "hidden_dropout": 0.0,
    "layernorm_epsilon": 1e-05,
    "multi_query_attention": True,
    "original_rope": True,
    "pad_token_id": 0,
    "post_layer_norm": True,
    "pre_seq_len": None,
    "prefix_projection": False,
    "quantization_bit": 0,
    "rmsnorm": True,
    "tie_word_embeddings": False,
    "torch_dtype": "float16",
    "use_cache": True,
    **SIZES,
}
TOKENIZER: dict[str, Any] = {
    "remove_space": False,
    "do_lower_case": False,
    "tokenizer_class": "ChatGLMTokenizer",
    "auto_map": {"AutoTokenizer": ["tokenization_chatglm.ChatGLMTokenizer", None]},
}
TEXTS = ["Using a Transformer network is simple", "the capital of Lesotho is Maseru", "yes no"]


def published_weights(*, seed: int = 0) -> dict[str, torch.Tensor]:
    """Random weights under the published names, large enough for sharp attention."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int, scale: float, offset: float = 0.0) -> torch.Tensor:
        return offset + scale * torch.randn(shape, generator=generator)

    width, inner, size = SIZES["hidden_size"], SIZES["ffn_hidden_size"], SIZES["kv_channels"]
    heads, groups = SIZES["num_attention_heads"], SIZES["multi_query_group_num"]
    fused = (heads + 2 * groups) * size
    weights = {
        "embedding.word_embeddings.weight": draw(SIZES["padded_vocab_size"], width, scale=1.0),
        "rotary_pos_emb.inv_freq": torch.full((size // 4,), 7.0),  # must not be believed
        "encoder.final_layernorm.weight": draw(width, scale=0.3, offset=1.0),
        "output_layer.weight": draw(SIZES["padded_vocab_size"], width, scale=0.3),
    }
    for layer in range(SIZES["num_layers"]):
        parts = {
            "input_layernorm.weight": draw(width, scale=0.3, offset=1.0),
            "self_attention.query_key_value.weight": draw(fused, width, scale=0.3),
            "self_attention.query_key_value.bias": draw(fused, scale=0.5),
            "self_attention.dense.weight": draw(width, heads * size, scale=0.2),
            "post_attention_layernorm.weight": draw(width, scale=0.3, offset=1.0),
            "mlp.dense_h_to_4h.weight": draw(2 * inner, width, scale=0.3),
            "mlp.dense_4h_to_h.weight": draw(width, inner, scale=0.2),
        }
        weights |= {f"encoder.layers.{layer}.{name}": value for name, value in parts.items()}
    return {PREFIX + name: value for name, value in weights.items()}


def save_tokenizer(folder: Path, *, texts: Sequence[str] = TEXTS) -> None:
    """Train a SentencePiece model of at most 400 pieces with bytes, as the published one has."""
    model = io.BytesIO()
    SentencePieceTrainer.train(
        sentence_iterator=iter([*texts] * 3),
        model_writer=model,
        model_type="bpe",
        vocab_size=400,
        hard_vocab_limit=False,
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        minloglevel=2,
    )
    (folder / "tokenizer.model").write_bytes(model.getvalue())
    (folder / "tokenizer_config.json").write_text(json.dumps(TOKENIZER))


def save_published(folder: Path, *, texts: Sequence[str] = TEXTS, **changed: Any) -> Path:
    """Write the whole folder; ``changed`` replaces keys of its config.json.

    Its Python files are there, as they are in the published one, and must never be run.
    """
    folder.mkdir(parents=True, exist_ok=True)
    save_tokenizer(folder, texts=texts)
    (folder / "config.json").write_text(json.dumps(PUBLISHED | changed))
    for name in ("configuration", "modeling", "tokenization"):
        (folder / f"{name}_chatglm.py").write_text("raise SystemExit('remote code was run')\n")
    weights = published_weights()
    names = sorted(weights)
    shards = {
        f"model-0000{number}-of-00002.safetensors": part
        for number, part in enumerate((names[::2], names[1::2]), start=1)
    }
    for file, part in shards.items():
        save_file({name: weights[name] for name in part}, folder / file, {"format": "pt"})
    index = {
        "metadata": {"total_size": sum(weight.nbytes for weight in weights.values())},
        "weight_map": {name: file for file, part in shards.items() for name in part},
    }
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder
