"""Adapter specs from PEFT configurations."""

from __future__ import annotations

from typing import Any

from peft import IA3Config, LoraConfig, PrefixTuningConfig, PromptEncoderConfig, PromptTuningConfig

from imsm.models.adapters.base import AdapterSpec


def lora(**fields: Any) -> AdapterSpec:
    return AdapterSpec(LoraConfig(task_type="CAUSAL_LM", **fields))


def dora(**fields: Any) -> AdapterSpec:
    return lora(use_dora=True, **fields)


def ia3(**fields: Any) -> AdapterSpec:
    return AdapterSpec(IA3Config(task_type="CAUSAL_LM", **fields))


def prompt_tuning(**fields: Any) -> AdapterSpec:
    return AdapterSpec(PromptTuningConfig(task_type="CAUSAL_LM", **fields))


def prefix_tuning(**fields: Any) -> AdapterSpec:
    return AdapterSpec(PrefixTuningConfig(task_type="CAUSAL_LM", **fields))


def p_tuning(**fields: Any) -> AdapterSpec:
    return AdapterSpec(PromptEncoderConfig(task_type="CAUSAL_LM", **fields))
