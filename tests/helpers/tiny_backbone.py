"""A tiny random backbone with a tokenizer of its own, saved as any model folder is."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

SPECIAL = ["<pad>", "<s>", "</s>", "<unk>"]


def save_backbone(folder: Path, *, texts: list[str], max_shard_size: str = "1GB", **shape: int) -> Path:
    """Write a Llama of two layers whose vocabulary is the words of ``texts``; ``shape`` changes its configuration."""
    split = pre_tokenizers.Split(Regex(r"\n| ?[^\s]+|\s"), behavior="isolated")
    words = {word for text in texts for word, _ in split.pre_tokenize_str(text)}
    vocabulary = {word: index for index, word in enumerate([*SPECIAL, *sorted(words)])}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    inner.pre_tokenizer = split
    inner.decoder = decoders.Fuse()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )
    torch.manual_seed(0)
    sizes = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        **shape,
    }
    config = LlamaConfig(vocab_size=len(vocabulary), bos_token_id=1, eos_token_id=2, pad_token_id=0, **sizes)
    LlamaForCausalLM(config).save_pretrained(folder, max_shard_size=max_shard_size)
    tokenizer.save_pretrained(folder)
    return folder
