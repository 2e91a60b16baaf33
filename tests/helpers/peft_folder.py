"""Adapters trained by PEFT alone, saved as PEFT saves them."""

from __future__ import annotations

import warnings
from pathlib import Path

import torch
from peft import LoraConfig, PeftConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.helpers.word_run import WORDS


def save_peft_adapter(folder: Path, base: Path, config: PeftConfig | None = None, *, steps: int = 8) -> Path:
    """Train an adapter on the backbone of `word_run` for a few steps; return its folder."""
    torch.manual_seed(0)
    config = config or LoraConfig(task_type="CAUSAL_LM", r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), config)
    tokenizer = AutoTokenizer.from_pretrained(base)
    batch = tokenizer([f"after {word} comes {WORDS[3]}" for word in WORDS], return_tensors="pt")
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.3)
    for _ in range(steps):
        model(input_ids=batch["input_ids"], labels=batch["input_ids"]).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(folder)
    return folder
