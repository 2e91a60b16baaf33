"""Architectures of transformers: the siamese model against two plain passes and the equations.

Independent of scripts/compatibility/architectures.py: hidden states are the last of the plain
models' `hidden_states`, and the operations after a head's projection are written out here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from peft import LoraConfig
from transformers import PreTrainedModel

from imsm.models.adapters.base import AdapterSpec
from imsm.models.builder import wrap_backbone
from imsm.models.siamese.model import SiameseForCausalLM
from scripts.compatibility.architectures import EXCLUDED
from scripts.compatibility.tiny_models import tiny_backbone, tiny_configuration
from tests.models.siamese.tiny import QUERY_GATE, decoded, padded, perturb

ROWS = [[5, 17, 33, 8, 21, 60, 44, 9, 71, 13, 52], [80, 7, 29, 64, 3, 41, 18]]
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {"tie_word_embeddings": False}),
    "llama, tied": ("llama", {"tie_word_embeddings": True}),
    "mistral": ("mistral", {}),
    "qwen2": ("qwen2", {}),
    "qwen3": ("qwen3", {}),
    "gemma": ("gemma", {}),
    "gemma2": ("gemma2", {"final_logit_softcapping": 3.0, "attn_logit_softcapping": 2.0}),
    "gemma3": ("gemma3_text", {}),
    "gemma3 with its image tower": ("gemma3", {}),
    "phi": ("phi", {}),
    "phi3": ("phi3", {}),
    "gpt2": ("gpt2", {}),
    "gptj": ("gptj", {}),
    "gpt_neox": ("gpt_neox", {}),
    "opt": ("opt", {}),
    "bloom": ("bloom", {}),
    "falcon": ("falcon", {}),
    "falcon, alibi": ("falcon", {"alibi": True}),
    "mpt": ("mpt", {}),
    "olmo2": ("olmo2", {}),
    "glm": ("glm", {}),
    "cohere": ("cohere", {"logit_scale": 0.3}),
    "granite": ("granite", {"logits_scaling": 4.0}),
    "stablelm": ("stablelm", {}),
    "mixtral": ("mixtral", {}),
    "qwen2_moe": ("qwen2_moe", {}),
    "gpt_oss": ("gpt_oss", {}),
    "phimoe": ("phimoe", {}),
    "minimax_m2, as many experts as rows": ("minimax_m2", {"num_local_experts": 4}),
    "deepseek_v3": ("deepseek_v3", {}),
    "bamba, attention behind a state space": ("bamba", {}),
    "mamba2, no cache": ("mamba2", {}),
    "openai-gpt, no cache": ("openai-gpt", {}),
}
AFTER_PROJECTION: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "gemma2": lambda logits: 3.0 * torch.tanh(logits / 3.0),
    "cohere": lambda logits: 0.3 * logits,
    "granite": lambda logits: logits / 4.0,
}
"""Operations of a head after its projection."""


def built(case: str) -> tuple[SiameseForCausalLM, PreTrainedModel]:
    """Build a siamese model with a perturbed LoRA on its linear layers, and an unmodified backbone."""
    name, overrides = CASES[case]
    configuration = tiny_configuration(name, **overrides)
    excluded = EXCLUDED if name in ("phimoe", "mamba2", "bamba") else None
    lora = LoraConfig(target_modules="all-linear", exclude_modules=excluded, r=3, lora_alpha=6)
    model = wrap_backbone(
        tiny_backbone(configuration),
        backbone={"name_or_path": name},
        adapter=AdapterSpec(lora),
        gate=QUERY_GATE,
        pooling="mean",
        stream="interwoven",
        seed=1,
    )
    perturb(model, scale=0.2)
    return model.eval(), tiny_backbone(configuration)


@torch.no_grad()
def reference(
    model: SiameseForCausalLM, plain: PreTrainedModel, case: str, ids: list[int], query: int
) -> torch.Tensor:
    """Return logits by equations 2-7 from the query's last position on, (T - query + 1, V)."""
    tokens = torch.tensor([ids])
    options = {"input_ids": tokens, "use_cache": False, "output_hidden_states": True}
    original = plain(**options).hidden_states[-1][0]
    tuned = model.adapted.get_base_model()(**options).hidden_states[-1][0]
    assert (original - tuned).abs().max() > 0.05  # the adapter has an effect
    rows = []
    for h_o, h_t in zip(original[query - 1 :], tuned[query - 1 :], strict=True):
        inputs = torch.cat([original[:query].mean(0), h_o, h_t, tuned[:query].mean(0)])
        gate = torch.sigmoid(model.gate.up.weight @ (model.gate.down.weight @ inputs))
        rows.append(gate * h_o + (1 - gate) * h_t)
    logits = plain.get_output_embeddings()(torch.stack(rows))
    return AFTER_PROJECTION.get(case, lambda logits: logits)(logits)


@pytest.mark.parametrize("case", CASES)
def test_forward_and_generate_equal_two_plain_passes(case: str) -> None:
    model, plain = built(case)
    assert model.config.supports_cache != case.endswith("no cache")
    ids, mask = padded(ROWS, side="left")
    with torch.no_grad():
        logits = model(ids, attention_mask=mask, query_mask=mask).logits
    generated = model.generate(ids, attention_mask=mask, max_new_tokens=4, do_sample=False, eos_token_id=None)
    for row, prompt in enumerate(ROWS):
        expected = reference(model, plain, case, prompt, len(prompt))[-1]
        torch.testing.assert_close(logits[row, -1], expected, rtol=1e-4, atol=1e-4)
        text = list(prompt)
        for _ in range(4):
            text.append(int(reference(model, plain, case, text, len(prompt))[-1].argmax()))
        assert generated[row, ids.shape[1] :].tolist() == text[len(prompt) :]
    with torch.no_grad():
        untouched = plain(input_ids=ids[:1], use_cache=False).logits
    model.stream = "original"
    with torch.no_grad():
        assert torch.equal(model(ids[:1]).logits, untouched)


@pytest.mark.parametrize("case", CASES)
def test_training_reduces_the_loss_and_keeps_the_original_stream(case: str) -> None:
    model, plain = built(case)
    ids, mask = padded(ROWS, side="right")
    labels = ids.where(mask.bool() & (torch.arange(ids.shape[1]) > 4), -100)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    model.train()
    losses = []
    for _ in range(5):
        optimizer.zero_grad()
        loss = model(ids, attention_mask=mask, labels=labels).loss
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    model.eval()
    model.stream = "original"
    with torch.no_grad():
        untouched = plain(input_ids=ids[:1], use_cache=False).logits
        assert torch.equal(model(ids[:1]).logits, untouched)


@pytest.mark.parametrize("case", ["bamba, attention behind a state space", "gemma2", "gpt_oss"])
def test_beam_search_reorders_both_streams_in_every_layer_class(case: str) -> None:
    model, _ = built(case)
    ids, mask = padded(ROWS, side="left")
    options = {"attention_mask": mask, "max_new_tokens": 5, "num_beams": 3, "do_sample": False}
    options |= {"num_return_sequences": 2, "eos_token_id": None}
    with_cache = model.generate(ids, **options)
    assert torch.equal(model.generate(ids, **options, use_cache=False), with_cache)
    assert len({tuple(row) for row in with_cache.tolist()}) == 4


def test_backbone_without_cache_support_rejects_a_cache() -> None:
    model, _ = built("mamba2, no cache")
    expected = decoded(model, ROWS[0], max_new_tokens=4)
    assert decoded(model, ROWS[0], max_new_tokens=4, use_cache=True) == expected
    ids = torch.tensor(ROWS[:1])
    assert model(ids, query_mask=torch.ones_like(ids), use_cache=True).past_key_values is None
    with pytest.raises(ValueError, match=r"^past_key_values: .*use_cache=False"):
        model(ids, past_key_values=model.new_cache())


@torch.no_grad()
def test_experts_and_routers_in_a_dual_batch_equal_two_passes() -> None:
    """PEFT wraps a layer of experts once per weight, and passes it more arguments than rows."""
    for case in ("mixtral", "minimax_m2, as many experts as rows", "qwen2_moe"):
        model, _ = built(case)
        ids = torch.tensor([ROWS[0][:1], ROWS[1][:1]])  # a dual batch has 4 rows, as many as experts
        inputs = {"input_ids": ids, "position_ids": torch.zeros_like(ids)}
        dual = model.streams.both_hidden_states(inputs, cache=None)
        for stream, hidden in zip(("original", "tuned"), dual, strict=True):
            alone = model.streams.hidden_states(inputs, stream=stream, cache=None)
            torch.testing.assert_close(hidden, alone, rtol=1e-5, atol=1e-5)
        assert not torch.allclose(*dual, atol=1e-2)
