"""Memory estimates compared with a real step of the same small model."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks
from transformers import DynamicCache

from imsm.models.backbones.loading import load_backbone
from imsm.models.backbones.meta_model import build_meta_model, find_config
from imsm.models.builder import wrap_backbone
from imsm.models.siamese.model import SiameseForCausalLM
from imsm.pipeline.plan.memory import count_bytes, estimate_step, kv_cache_bytes
from imsm.pipeline.plan.plan import make_plan
from imsm.pipeline.plan.types import MemoryItem
from imsm.training.optimizer import build_optimizer
from tests.helpers.adapters import ia3, lora
from tests.helpers.config import config
from tests.helpers.tiny_backbone import save_backbone

GATE = {
    "_target_": "imsm.models.siamese.gate.Gate",
    "inputs": ["query_original", "original", "tuned", "query_tuned"],
    "rank": 8,
}
ROWS, PROMPT, ANSWER = 3, 40, 9


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_backbone(tmp_path_factory.mktemp("backbone"), texts=["a b c d e f g h"])


def real_model(
    folder: Path, *, stream: str, adapter: str = "lora", dtype: str = "float32", attention: str = "sdpa"
) -> SiameseForCausalLM:
    plain = load_backbone(name_or_path=str(folder), dtype=dtype, attn_implementation=attention)
    return _siamese(plain, stream=stream, adapter=adapter)


def meta_model(folder: Path, *, stream: str, adapter: str = "lora", dtype: str = "float32") -> SiameseForCausalLM:
    configuration, _ = find_config(path=str(folder), revision=None, architecture=None)
    plain = build_meta_model(configuration, dtype=dtype)
    with torch.device("meta"):
        return _siamese(plain, stream=stream, adapter=adapter)


def _siamese(plain, *, stream: str, adapter: str) -> SiameseForCausalLM:
    made = {
        "lora": lambda: lora(target_modules=["q_proj", "v_proj"], r=4, lora_alpha=4, lora_dropout=0.0),
        "ia3": lambda: ia3(target_modules=["k_proj", "v_proj", "down_proj"], feedforward_modules=["down_proj"]),
    }
    model = wrap_backbone(
        plain,
        backbone={},
        adapter=made[adapter](),
        gate=GATE if stream == "interwoven" else None,
        pooling="mean",
        stream=stream,
        seed=0,
    )
    return model.train()


def batch() -> dict[str, torch.Tensor]:
    ids = torch.randint(4, 8, (ROWS, PROMPT + ANSWER))
    mask = torch.ones_like(ids)
    mask[0, -5:] = 0  # padding, as in a real batch
    labels = ids.clone()
    labels[:, :PROMPT] = -100
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


@pytest.mark.parametrize("adapter", ["lora", "ia3"])
@pytest.mark.parametrize("optimizer", ["adamw", "adafactor"])
def test_weights_gradients_and_optimizer_state_are_exact(folder: Path, adapter: str, optimizer: str) -> None:
    model = real_model(folder, stream="interwoven", adapter=adapter)
    built = build_optimizer(model, name=optimizer, learning_rate=1e-3, gate_learning_rate=None, weight_decay=0.0)
    model(**batch()).loss.backward()
    built.step()
    trained = [p for p in model.parameters() if p.requires_grad]
    frozen = [p for p in model.parameters() if not p.requires_grad]
    counted = count_bytes(meta_model(folder, stream="interwoven", adapter=adapter), optimizer=optimizer)
    assert counted.frozen_parameters == sum(p.numel() for p in frozen)
    assert counted.weights == sum(p.nbytes for p in frozen) + sum(b.nbytes for b in model.buffers())
    assert counted.trainables == sum(p.nbytes for p in trained)
    assert counted.gradients == sum(p.grad.nbytes for p in trained if p.grad is not None)
    state = [
        value.nbytes
        for state in built.state.values()
        for value in state.values()
        if isinstance(value, torch.Tensor) and value.ndim > 0  # without step counts
    ]
    assert counted.optimizer == sum(state)


@pytest.mark.parametrize(
    ("stream", "adapter", "dtype", "attention"),
    [
        ("tuned", "lora", "float32", "sdpa"),
        ("tuned", "lora", "float32", "eager"),
        ("tuned", "lora", "bfloat16", "sdpa"),
        ("interwoven", "lora", "float32", "sdpa"),
        ("interwoven", "ia3", "float32", "sdpa"),
        ("interwoven", "ia3", "bfloat16", "sdpa"),
    ],
)
def test_activations_match_what_a_real_step_saves(
    folder: Path, stream: str, adapter: str, dtype: str, attention: str
) -> None:
    model = real_model(folder, stream=stream, adapter=adapter, dtype=dtype, attention=attention)
    own = {t.untyped_storage()._cdata for t in (*model.parameters(), *model.buffers())}
    saved: dict[int, torch.UntypedStorage] = {}

    def save(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            saved[storage._cdata] = storage
        return tensor

    with saved_tensors_hooks(save, lambda tensor: tensor):
        model(**batch())
    measured = sum(storage.nbytes() for storage in saved.values())
    estimate = estimate_step(
        meta_model(folder, stream=stream, adapter=adapter, dtype=dtype),
        rows=ROWS,
        tokens=PROMPT + ANSWER,
        answer_tokens=ANSWER,
        attention=attention,
        checkpointing=False,
        sharded_head=False,
    )
    assert estimate.activations == pytest.approx(measured, rel=0.1)


def test_checkpointing_saves_layer_inputs_and_one_layer(folder: Path) -> None:
    model = meta_model(folder, stream="tuned")
    activations = [
        estimate_step(
            model,
            rows=4,
            tokens=64,
            answer_tokens=8,
            attention="sdpa",
            checkpointing=checkpointing,
            sharded_head=False,
        ).activations
        for checkpointing in (False, True)
    ]
    layers, inputs = 2, 2 * 4 * 64 * 32 * 4
    assert activations[1] == inputs + activations[0] // layers


@pytest.mark.parametrize("sharded_head", [False, True])
def test_logits_of_long_answers_are_computed_in_chunks(
    folder: Path, monkeypatch: pytest.MonkeyPatch, sharded_head: bool
) -> None:
    model = meta_model(folder, stream="tuned")
    vocabulary = model.config.vocab_size
    monkeypatch.setattr("imsm.models.siamese.chunked_loss.MAX_LOGITS", 20 * vocabulary)
    found = estimate_step(
        model, rows=4, tokens=64, answer_tokens=8, attention="sdpa", checkpointing=False, sharded_head=sharded_head
    )
    assert found.logits == (32 if sharded_head else 20) * 3 * 4 * vocabulary


def test_kv_caches_have_the_size_of_real_ones(folder: Path) -> None:
    model = real_model(folder, stream="tuned")
    cache = DynamicCache(config=model.config.text_config)
    ids = torch.randint(4, 8, (ROWS, PROMPT))
    with torch.no_grad():
        model.streams.hidden_states({"input_ids": ids}, stream="original", cache=cache)
    filled = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
    layers = estimate_step(
        meta_model(folder, stream="tuned"),
        rows=1,
        tokens=7,
        answer_tokens=2,
        attention="sdpa",
        checkpointing=False,
        sharded_head=False,
    ).kv_cache
    assert kv_cache_bytes(layers, rows=ROWS, tokens=PROMPT, streams=1) == filled
    assert kv_cache_bytes(layers, rows=ROWS, tokens=PROMPT, streams=2) == 2 * filled
    assert kv_cache_bytes([(10, 4), (10, None)], rows=1, tokens=100, streams=1) == 40 + 1000


def test_the_plan_of_llama3_on_80_gb_evaluates_at_least_128_prompts_at_once() -> None:
    gpus = ["mode=plan", "backbone=llama3", "engine.device=cuda", "engine.nproc_per_node=8"]
    plan = make_plan(config(*gpus))
    rows = {item.name: item for item in plan.memory["memory per GPU, evaluation"]}
    assert int(rows["KV caches"].basis.split()[0]) >= 128
    assert sum(item.size or 0 for item in rows.values()) < 80e9
    # a given number is kept
    fixed = make_plan(config(*gpus, "evaluation.batch_size=24"))
    assert fixed.memory["memory per GPU, evaluation"][2].basis.startswith("24 prompts of ")


def test_a_gpu_has_a_reserve_and_a_cpu_has_none() -> None:
    gpus = ["mode=plan", "backbone=llama3", "engine.device=cuda"]

    def reserve(*overrides: str) -> list[MemoryItem]:
        plan = make_plan(config(*overrides))
        return [item for items in plan.memory.values() for item in items if item.name == "reserve"]

    one, eight = reserve(*gpus), reserve(*gpus, "engine.nproc_per_node=8")
    assert len(one) == len(eight) == 2
    assert all("not measured" in item.basis and not item.exact for item in (*one, *eight))
    assert "NCCL" in eight[0].basis and "NCCL" not in one[0].basis
    assert reserve("mode=plan", "backbone=llama3", "engine.device=cpu") == []


def weights_of(*overrides: str, section: str = "training") -> dict[str, int]:
    """Return the exact items of the weights of Llama 3 70B in a plan."""
    options = ["mode=plan", "backbone=llama3_70b", "engine.device=cuda", "trainer.gradient_checkpointing=true"]
    items = make_plan(config(*options, *overrides)).memory[f"memory per GPU, {section}"]
    return {item.name: item.size or 0 for item in items if "weights" in item.name}


def test_fsdp2_shards_the_layers_in_training_and_evaluation() -> None:
    layer = 8192 * (2 * 8192 + 2 * 1024 + 3 * 28672 + 2)
    for section in ("training", "evaluation"):
        found = weights_of("engine=fsdp2", "engine.nproc_per_node=8", section=section)
        assert found["weights"] == 2 * 80 * layer // 8
        assert found["complete weights"] == pytest.approx(2 * 8192 * (2 * 128256 + 1), abs=1000)  # and buffers


def test_weights_in_4_bits_take_a_half_byte_and_their_scales() -> None:
    linear = 80 * 8192 * (2 * 8192 + 2 * 1024 + 3 * 28672)
    plain, quantized = (weights_of(f"backbone.quantization={each}")["weights"] for each in ("null", "nf4"))
    assert plain - quantized == pytest.approx(linear * (2 - 0.5625), rel=1e-6)
