"""Patterns of module names in PEFT configurations: common ones are accepted, slow ones are not."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path

import pytest
from peft import IA3Config, LoraConfig

from imsm.models.adapters.patterns import slow_pattern
from imsm.models.siamese.serialization import load_adapter
from imsm.utils.errors import UserError
from tests.models.siamese.tiny import tiny_backbone

SLOW = [
    "(a+)+$",
    "(?:a|a)*b",
    "([a-z.]*)*x",
    "(.*.*)+x",
    ".*.*.*.*.*.*x",
    ".*?.*?.*?.*?.*?x",
    "a?" * 40 + "a" * 40,
    "(a|a)" * 40 + "x",
    "(.|.)(.|.)(.|.).*.*.*x",
    "((a{1,9}){1,9}){1,9}$",
    r"(\w+\.?)+$",
    "a" * 5000,
]
COMMON = [
    "all-linear",
    "q_proj",
    "model.layers.0.self_attn.q_proj",
    r".*\.(q_proj|v_proj)",
    r"model\.layers\.(?:0|1|2)\.self_attn\.[qkv]_proj$",
    rf"model\.layers\.({'|'.join(map(str, range(8, 32)))})\..*_proj",
    r"(?!.*vision).*\.\d+\.mlp\.up_proj",
    r"^model\.layers\.\d+\.(self_attn\.(q|k|v|o)_proj|mlp\.down_proj)$",
]
NAMES = [f"model.layers.{number}.{'a' * 40}.self_attn.q_proj" for number in range(300)]


@pytest.mark.parametrize("pattern", SLOW)
@pytest.mark.parametrize("field", ["target_modules", "exclude_modules", "rank_pattern", "layers_pattern"])
def test_a_slow_pattern_is_found_within_a_second(field: str, pattern: str) -> None:
    value = {pattern: 4} if field == "rank_pattern" else [pattern] if field == "layers_pattern" else pattern
    config = LoraConfig(target_modules=["q_proj"])
    setattr(config, field, value)
    started = time.monotonic()
    reason = slow_pattern(config)
    assert reason is not None and reason.startswith(f"{field}=")
    assert time.monotonic() - started < 1


@pytest.mark.parametrize("pattern", COMMON)
def test_a_common_pattern_is_accepted_and_matches_quickly(pattern: str) -> None:
    assert slow_pattern(LoraConfig(target_modules=pattern, rank_pattern={pattern: 4})) is None
    assert slow_pattern(IA3Config(target_modules=[pattern], feedforward_modules=pattern)) is None
    started = time.monotonic()
    for name in NAMES:
        re.fullmatch(pattern, name)
    assert time.monotonic() - started < 1


def test_an_adapter_with_a_slow_pattern_is_not_loaded(tmp_path: Path) -> None:
    values = {"peft_type": "LORA", "target_modules": r"(\w+\.?)+$", "task_type": "CAUSAL_LM", "r": 2}
    (tmp_path / "adapter_config.json").write_text(json.dumps(values))
    started = time.monotonic()
    with pytest.raises(UserError, match="target_modules="):
        load_adapter(tiny_backbone("llama"), tmp_path, trainable=False)
    assert time.monotonic() - started < 2
