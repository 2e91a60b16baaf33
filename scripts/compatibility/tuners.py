"""Test every method of the installed PEFT in a siamese model with a tiny random Llama.

    python -m scripts.compatibility.tuners [NAME ...]

Each method is built and checked, trained, saved, loaded and used for generation, as in a run. The
results are measured on the trained model; a rejected method has the reason.
"""

from __future__ import annotations

import sys
import tempfile
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from peft import get_peft_model
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from peft.tuners.lora.config import ArrowConfig, KasaConfig, MontecloraConfig
from transformers import AutoModelForCausalLM, LlamaConfig
from transformers.utils import logging

from imsm.data.batching import MicroBatching
from imsm.data.tokenization import TokenizedExample
from imsm.models.adapters.adalora import adalora
from imsm.models.adapters.base import AdapterSpec
from imsm.models.adapters.peft_generic import peft_tuner
from imsm.models.backbones.loading import load_backbone
from imsm.models.builder import build_model
from imsm.models.siamese.kv_cache import DualStreamCache
from imsm.models.siamese.model import SiameseForCausalLM
from imsm.training.checkpoint_manager import CheckpointManager
from imsm.training.engines.single_device import SingleDeviceEngine
from imsm.training.optimizer import build_lr_scheduler, build_optimizer
from imsm.training.trainer import BatchPlan, train
from imsm.utils.errors import UserError

GATE = {
    "_target_": "imsm.models.siamese.gate.Gate",
    "inputs": ["query_original", "original", "tuned", "query_tuned"],
    "rank": 4,
}
TARGETS = ["q_proj", "v_proj"]
_PROMPT = {"num_virtual_tokens": 4}
ARGUMENTS: dict[str, dict[str, Any]] = {
    "ADAPTION_PROMPT": {"adapter_len": 4, "adapter_layers": 2},
    "BOFT": {"boft_block_size": 4},
    "C3A": {"block_size": 8},
    "CARTRIDGE": _PROMPT,
    "CPT": {"cpt_token_ids": [5, 6, 7, 8], "cpt_mask": [1, 1, 1, 1], "cpt_tokens_type_mask": [1, 2, 2, 3]},
    "FOURIERFT": {"n_frequency": 64},
    "IA3": {"feedforward_modules": []},
    "MISS": {"r": 4},
    "OFT": {"r": 0, "oft_block_size": 4},
    "OSF": {"effective_rank": 4},
    "PREFIX_TUNING": _PROMPT,
    "PROMPT_TUNING": _PROMPT,
    "PSOFT": {"r": 4},
    "P_TUNING": _PROMPT,
    "ROAD": {"group_size": 8},
    "SHIRA": {"r": 4},
    "TRAINABLE_TOKENS": {"token_indices": list(range(3, 97))},
    "UNILORA": {"theta_d_length": 64},
    "VBLORA": {"num_vectors": 16, "vector_length": 8},
    "WAVEFT": {"n_frequency": 64},
}
"""Fields needed for a model of hidden size 32; PEFT's defaults for the others."""
VARIANTS: dict[str, dict[str, Any]] = {
    "DoRA": {"use_dora": True},
    "rsLoRA": {"use_rslora": True},
    "orthogonal initialization": {"init_lora_weights": "orthogonal"},
    "MiCA": {"init_lora_weights": "mica"},
    "LoRA bias": {"lora_bias": True},
    "embeddings": {"target_modules": [*TARGETS, "embed_tokens"]},
    "modules_to_save: embeddings": {"modules_to_save": ["embed_tokens"]},
    "trainable tokens": {"trainable_token_indices": [5, 6, 7]},
    "LM head": {"target_modules": ["lm_head"]},
    "modules_to_save: LM head": {"modules_to_save": ["lm_head"]},
    "backbone biases": {"bias": "all"},
    "PiSSA": {"init_lora_weights": "pissa"},
    "OLoRA": {"init_lora_weights": "olora"},
    "CorDA": {"init_lora_weights": "corda"},
    "LoftQ": {"init_lora_weights": "loftq"},
    "LoRA-GA": {"init_lora_weights": "lora_ga"},
    "EVA": {"init_lora_weights": "eva"},
    "KaSA": {"kasa_config": KasaConfig()},
    "aLoRA": {"alora_invocation_tokens": [5]},
    "Arrow": {"arrow_config": ArrowConfig()},
    "MonteCLoRA": {"monteclora_config": MontecloraConfig()},
    "layer replication": {"layer_replication": [[0, 2], [1, 2]]},
}
"""Variants of LoRA by name; their rows are named "LORA (DoRA)" and so on."""
STEPS, BATCH, VOCABULARY = 16, 6, 97


@dataclass(kw_only=True)
class Row:
    """One method in docs/compatibility.json; None where it was rejected before the test."""

    name: str
    original_exact: bool | None = None
    dual_stream_exact: bool | None = None
    trains: bool | None = None
    saves: bool | None = None
    reason: str = ""


def rows(names: list[str] | None = None) -> list[dict[str, Any]]:
    """Test all methods of PEFT and the variants of LoRA; takes two minutes on one core.

    Args:
        names: rows to test; default: all.
    """
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    with warnings.catch_warnings(), tempfile.TemporaryDirectory() as folder:
        warnings.simplefilter("ignore")
        tiny_llama().save_pretrained(Path(folder) / "backbone")
        chosen = {name: case for name, case in cases().items() if not names or name in names}
        return [asdict(row(name, *case, folder=Path(folder))) for name, case in chosen.items()]


def cases() -> dict[str, tuple[str, dict[str, Any]]]:
    """PEFT type and fields of every row by its name, without methods that others registered."""
    known = PEFT_TYPE_TO_CONFIG_MAPPING.items()
    types = [str(kind.value) for kind, config in known if config.__module__.startswith("peft.")]
    types_with_fields = {kind: (kind, ARGUMENTS.get(kind, {})) for kind in types}
    return types_with_fields | {f"LORA ({name})": ("LORA", more) for name, more in VARIANTS.items()}


def row(name: str, kind: str, arguments: dict[str, Any], *, folder: Path) -> Row:
    """Attach a method to the backbone in ``folder``, train it, save it and load it."""
    backbone = {"name_or_path": str(folder / "backbone"), "dtype": "float32"}
    try:
        adapter = _adapter(kind, arguments)
        model = build_model(backbone=backbone, adapter=adapter, gate=GATE, pooling="mean", stream="interwoven", seed=0)
    except UserError as error:
        exact = _exact_in_peft(kind, arguments, backbone)
        return Row(name=name, original_exact=exact, reason=_short(error))
    two_passes = not model.streams.batch_both
    before = loss(model)
    values = [p.detach().clone() for p in _adapter_values(model)]
    training(model, adapter, folder=folder / f"{name} checkpoints")
    moved = any(not p.equal(v) for p, v in zip(_adapter_values(model), values, strict=True))
    plain = load_backbone(**backbone)
    model.save_pretrained(folder / name)
    again = SiameseForCausalLM.from_pretrained(folder / name)
    return Row(
        name=name,
        original_exact=original_exact(model, plain),
        dual_stream_exact=dual_stream_exact(model),
        trains=moved and loss(model) < before - 0.01,
        saves=generated_tokens(again) == generated_tokens(model),
        reason="decoded in two passes with two KV caches" if two_passes else "",
    )


def training(model: SiameseForCausalLM, adapter: AdapterSpec, *, folder: Path) -> None:
    """Run the training loop for some steps on one batch."""
    optimizer = build_optimizer(model, name="adamw", learning_rate=2e-2, gate_learning_rate=1e-3, weight_decay=0.0)
    schedule = build_lr_scheduler(optimizer, lr_scheduler_type="linear", warmup_ratio=0.1, num_training_steps=STEPS)
    engine = SingleDeviceEngine(
        model, optimizer=optimizer, lr_scheduler=schedule, max_grad_norm=1.0, device=torch.device("cpu")
    )
    callbacks = adapter.callbacks(model.adapted, STEPS) if adapter.callbacks else None
    train(
        model,
        examples(),
        engine=engine,
        callbacks=callbacks,
        batch_plan=BatchPlan(
            num_epochs=STEPS, global_batch_size=BATCH, micro_batching=MicroBatching(size=BATCH), seed=0
        ),
        checkpoint_manager=CheckpointManager(
            folder=folder, identity={}, engine=engine, callbacks=callbacks, save_minutes=60
        ),
        pad_id=0,
        log=lambda step, measured: None,
    )


def examples() -> list[TokenizedExample]:
    """Random prompts of several lengths with random answers."""
    generator = torch.Generator().manual_seed(1)

    def tokens(length: int) -> tuple[int, ...]:
        drawn = torch.randint(3, VOCABULARY, (length,), generator=generator).tolist()
        return tuple(map(int, drawn))

    return [TokenizedExample(id=str(i), prompt_ids=tokens(5 + i), answer_ids=tokens(3)) for i in range(BATCH)]


@torch.no_grad()
def loss(model: SiameseForCausalLM) -> float:
    """Mean loss of the interwoven stream over the examples, one at a time."""
    losses = []
    for example in examples():
        ids = torch.tensor([example.prompt_ids + example.answer_ids])
        answer = torch.arange(ids.shape[1]) >= len(example.prompt_ids)
        losses.append(float(model(ids, labels=ids.where(answer, -100)).loss))
    return sum(losses) / len(losses)


@torch.no_grad()
def original_exact(model: SiameseForCausalLM, plain: torch.nn.Module) -> bool:
    """Whether the original stream of the trained model is the unmodified backbone, bit for bit."""
    model.stream = "original"
    both = [
        torch.equal(model(torch.tensor([example.prompt_ids])).logits, plain(torch.tensor([example.prompt_ids])).logits)
        for example in examples()
    ]
    model.stream = "interwoven"
    return all(both)


@torch.no_grad()
def dual_stream_exact(model: SiameseForCausalLM) -> bool:
    """Whether a dual-stream batch with a KV cache gives the hidden states of two passes."""
    ids = torch.tensor([examples()[-1].prompt_ids])
    positions = torch.arange(ids.shape[1])[None]
    alone = [
        model.streams.hidden_states({"input_ids": ids, "position_ids": positions}, stream=s, cache=None)
        for s in ("original", "tuned")
    ]
    cache = DualStreamCache(config=model.config.get_text_config(decoder=True), batch_both=True)
    chunks = []
    try:
        for chunk in (slice(0, 6), slice(6, None)):
            inputs = {"input_ids": ids[:, chunk], "position_ids": positions[:, chunk]}
            chunks.append(model.streams.both_hidden_states(inputs, cache=cache))
    except (AttributeError, RuntimeError, TypeError, ValueError):
        return False
    both = [torch.cat(parts, dim=1) for parts in zip(*chunks, strict=True)]
    return all(torch.allclose(one, two, atol=1e-5) for one, two in zip(both, alone, strict=True))


def generated_tokens(model: SiameseForCausalLM) -> list[list[int]]:
    """Tokens generated by the tuned and the interwoven stream."""
    tokens = []
    for stream in ("tuned", "interwoven"):
        model.stream = stream
        for example in examples()[:2]:
            ids = torch.tensor([example.prompt_ids])
            tokens.append(model.generate(ids, max_new_tokens=8, do_sample=False)[0].tolist())
    return tokens


def tiny_llama() -> torch.nn.Module:
    """A random Llama with sharp attention, so that its responses differ."""
    torch.manual_seed(11)
    model = AutoModelForCausalLM.from_config(
        LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=64,
            bos_token_id=1,
            eos_token_id=2,
            pad_token_id=0,
        )
    )
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" not in name and "embed" not in name:
                parameter.mul_(10)
    return model


def _adapter(kind: str, arguments: dict[str, Any]) -> AdapterSpec:
    if kind == "ADALORA":
        return _adalora()
    return peft_tuner(target_modules=TARGETS, peft_type=kind, kwargs=arguments)


@torch.no_grad()
def _exact_in_peft(kind: str, arguments: dict[str, Any], backbone: dict[str, str]) -> bool | None:
    """False if a rejected method changes the original model when used with PEFT alone, else None."""
    ids = torch.tensor([examples()[0].prompt_ids])
    plain = load_backbone(**backbone)
    logits = plain(ids).logits
    config_class = PEFT_TYPE_TO_CONFIG_MAPPING[kind]
    try:
        config = config_class(task_type="CAUSAL_LM", **{"target_modules": TARGETS, **arguments})
        adapted = get_peft_model(plain, config)
        with adapted.disable_adapter():
            return None if torch.equal(adapted(input_ids=ids).logits, logits) else False
    except Exception:  # PEFT rejects it too, or it needs data that is not available here
        return None


def _adalora() -> AdapterSpec:
    return adalora(
        target_modules=TARGETS,
        init_r=6,
        target_r=3,
        lora_alpha=8,
        lora_dropout=0.0,
        tinit_ratio=0.1,
        tfinal_ratio=0.3,
        deltaT=2,
        orth_reg_weight=0.5,
    )


def _adapter_values(model: SiameseForCausalLM) -> list[torch.nn.Parameter]:
    return [p for p in model.adapted.parameters() if p.requires_grad]


def _short(error: UserError) -> str:
    """Return the reason in an error message, without its key and the advice."""
    return str(error).removeprefix("peft: ").partition("; choose another")[0]


if __name__ == "__main__":
    for result in rows(sys.argv[1:]):
        print(result)
