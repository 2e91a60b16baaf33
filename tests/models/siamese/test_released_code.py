"""The gates and the recipe against numbers of the paper's released code, which ran unmodified.

`released_code.safetensors` is written by `scripts/record_released_code.py`; its metadata names repository,
commit, command and versions. Both sides compute in float32, the released one with two copies of the model and
with sums in another order: 5e-6 is eight times the largest difference seen.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors import safe_open
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from imsm.data.batching import MicroBatching, collate_prompts, collate_training, step_groups
from imsm.data.example import Example
from imsm.data.tokenization import TokenizedExample, encode_prompts, tokenize_training
from imsm.models.adapters.base import attach_adapter
from imsm.models.siamese.config import SiameseConfig
from imsm.models.siamese.gate import build_gate
from imsm.models.siamese.hidden_state_cache import compute_in_memory
from imsm.models.siamese.inputs import query_mask_from_labels
from imsm.models.siamese.model import SiameseForCausalLM
from imsm.training.engines.single_device import SingleDeviceEngine
from imsm.training.optimizer import build_lr_scheduler, build_optimizer
from imsm.training.train_step import train_step
from imsm.training.trainer import BatchPlan
from tests.helpers.adapters import lora
from tests.helpers.config import config

RECORD = Path(__file__).with_name("released_code.safetensors")
GATES = {0: "no_gate", 2: "no_query", 4: "residual", 5: "query", 6: "additive"}
"""The modes of the released code, and the options of gate that equal them."""
TOLERANCE: dict[str, float] = {"atol": 5e-6, "rtol": 5e-6}
modes = pytest.mark.parametrize("mode", GATES)


@cache
def values() -> dict[str, Any]:
    with safe_open(RECORD, "pt") as file:
        read: dict[str, Any] = json.loads(file.metadata()["values"])
        return read


@cache
def tensors(prefix: str) -> dict[str, torch.Tensor]:
    with safe_open(RECORD, "pt") as file:
        keys = [key for key in file.keys() if key.startswith(prefix)]  # noqa: SIM118 - not iterable
        return {key.removeprefix(prefix): file.get_tensor(key) for key in keys}


@cache
def tokenizer() -> PreTrainedTokenizerFast:
    words = [f"w{number}" for number in range(values()["llama"]["vocab_size"] - 3)]
    inner = Tokenizer(models.WordLevel({word: n for n, word in enumerate(["<pad>", "<s>", "</s>", *words])}, "<pad>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    inner.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="<pad>", bos_token="<s>", eos_token="</s>")


@cache
def examples() -> list[TokenizedExample]:
    given = [
        Example(id=str(number), prompt=row["input"], golds=(row["output"],))
        for number, row in enumerate(values()["examples"])
    ]
    training = values()["training"]
    tokenized, stats = tokenize_training(
        given,
        tokenizer(),
        max_prompt_tokens=training["max_input_length"],
        max_answer_tokens=training["max_output_length"],
        closed_vocabulary=False,
        truncation="right",
    )
    assert (stats.cut, stats.dropped) == (2, 0)
    return tokenized


def interwoven(mode: int, weights: str) -> SiameseForCausalLM:
    """Return the model with the recorded weights and the gate of ``conf/gate``."""
    backbone = LlamaForCausalLM(LlamaConfig(**values()["llama"])).requires_grad_(False)
    backbone.load_state_dict(tensors("backbone."))
    adapter = lora(target_modules=["q_proj", "v_proj"], r=2, lora_alpha=4, lora_dropout=0.0)
    adapted: PeftModel = attach_adapter(adapter, backbone)
    rank = [] if mode == 0 else [f"gate.rank={values()['training']['gate_rank']}"]
    section = config(f"gate={GATES[mode]}", *rank).gate
    gate = {"_target_": section.target, **section.arguments()}
    siamese = SiameseConfig(
        text_config=backbone.config,
        backbone={"name_or_path": "tiny"},
        gate=gate,
        pooling=section.pooling,
        stream="interwoven",
    )
    model = SiameseForCausalLM(siamese, adapted, build_gate(hidden_size=backbone.config.hidden_size, **gate))
    recorded = tensors(f"{mode}.{weights}.")
    with torch.no_grad():
        for name, parameter in trainables(model).items():
            parameter.copy_(recorded[name])
    return model.eval()


def trainables(model: SiameseForCausalLM) -> dict[str, torch.nn.Parameter]:
    adapter = {f"adapter.{name}": p for name, p in model.adapted.named_parameters() if p.requires_grad}
    gate = {f"gate.{name.removesuffix('.weight')}": p for name, p in model.gate.named_parameters() if p.requires_grad}
    return adapter | gate


def batch() -> dict[str, torch.Tensor]:
    """Return the first four examples, longest first as in the released collator."""
    rows = sorted(examples()[:4], key=lambda row: -len(row.prompt_ids) - len(row.answer_ids))
    return collate_training(rows, pad_id=0)


def answers(model: SiameseForCausalLM, *, together: bool) -> list[str]:
    """Return the greedy answers to all prompts, untruncated as in the released evaluation."""
    prompts = encode_prompts(tokenizer(), [row["input"] for row in values()["examples"]], chat=False)
    limit = values()["training"]["max_output_length"]
    found: list[str] = []
    for rows in [prompts] if together else [[prompt] for prompt in prompts]:
        ids, mask = collate_prompts(rows, pad_id=0)
        tokens = model.generate(input_ids=ids, attention_mask=mask, max_new_tokens=limit, do_sample=False)
        found += tokenizer().batch_decode(tokens[:, ids.shape[1] :], skip_special_tokens=True)
    return found


def test_prompts_and_answers_are_cut_as_in_the_released_code() -> None:
    found = [[[*row.prompt_ids, *row.answer_ids], len(row.prompt_ids)] for row in examples()]
    assert found == values()["tokenized"]


@modes
def test_logits_loss_and_gradients_equal_the_released_code(mode: int) -> None:
    model, given = interwoven(mode, "weights"), batch()
    labels = given.pop("labels")
    loss = model(**given, labels=labels).loss
    loss.backward()
    assert loss.item() == pytest.approx(values()["modes"][str(mode)]["loss"], abs=5e-6)
    query = query_mask_from_labels(labels, attention_mask=given["attention_mask"], query_mask=None)
    logits = model(**given, query_mask=query).logits[:, :-1][labels[:, 1:] != -100]
    torch.testing.assert_close(logits, tensors(f"{mode}.logits")[""], **TOLERANCE)
    gradients = tensors(f"{mode}.gradients.")
    assert gradients.keys() == trainables(model).keys()
    for name, parameter in trainables(model).items():
        torch.testing.assert_close(parameter.grad, gradients[name], **TOLERANCE)


@modes
@pytest.mark.parametrize("together", [True, False])
def test_greedy_answers_equal_the_released_code(mode: int, together: bool) -> None:
    """The released code processes the whole sequence for each token; here with a KV cache and left padding."""
    found = answers(interwoven(mode, "weights"), together=together)
    assert found[:11] == values()["modes"][str(mode)]["answers"]


@modes
@pytest.mark.parametrize("cached", [False, True])
def test_training_equals_the_released_program(mode: int, cached: bool) -> None:
    """21 steps of `train.py` on its own batches: losses, learning rates, final weights and answers."""
    model, training, recorded = interwoven(mode, "trained.before"), values()["training"], values()["modes"][str(mode)]
    accumulation, epochs = training["accumulation_steps"], training["num_epochs"]
    plan = BatchPlan(
        num_epochs=epochs,
        global_batch_size=training["batch_size"] * accumulation,
        micro_batching=MicroBatching(size=training["batch_size"]),
        seed=0,
        loss_group_size=training["batch_size"],
        carry_over=True,
    )
    micro = recorded["micro_batches"]
    per_epoch = len(micro) // epochs
    order = [micro[epoch * per_epoch : (epoch + 1) * per_epoch] for epoch in range(epochs)]
    steps = step_groups(order, groups_per_step=accumulation, carry_over=True)
    assert len(steps) == plan.num_steps(len(examples())) == len(recorded["learning_rates"])
    optimizer = build_optimizer(
        model, name="adamw", learning_rate=training["learning_rate"], gate_learning_rate=1e-3, weight_decay=0.01
    )
    schedule = build_lr_scheduler(
        optimizer,
        lr_scheduler_type=training["lr_schedule"],
        warmup_ratio=training["num_warmup_ratio"],
        warmup_rounding="down",
        num_training_steps=plan.num_scheduled_steps(len(examples())),
    )
    engine = SingleDeviceEngine(
        model, optimizer=optimizer, lr_scheduler=schedule, max_grad_norm=None, device=torch.device("cpu")
    )
    cache = compute_in_memory(model, examples(), pad_id=0) if cached else None
    losses = iter(recorded["losses"])
    model.train()
    for number, groups in enumerate(steps, start=1):
        metrics = train_step(
            [[examples()[index] for index in group] for group in groups],
            step=number,
            engine=engine,
            callbacks=None,
            micro_batching=MicroBatching(size=training["batch_size"]),
            pad_id=0,
            groups_per_step=plan.groups_per_step,
            hidden_state_cache=cache,
        )
        assert metrics["loss"] == pytest.approx(sum(next(losses) for _ in groups) / accumulation, abs=5e-6)
        rates = recorded["learning_rates"][number - 1]
        assert metrics["learning_rate_adapter"] == rates[0]
        assert mode == 0 or metrics["learning_rate_gate"] == rates[1]
    after = tensors(f"{mode}.trained.after.")
    for name, parameter in trainables(model).items():
        torch.testing.assert_close(parameter.detach(), after[name], **TOLERANCE)
    assert answers(model.eval(), together=True) == recorded["trained_answers"]


def test_dropout_of_the_gate_gives_the_released_share_of_one_half() -> None:
    """Random numbers are drawn in another order there, so the distribution is compared."""
    section = config("gate=query", "trainer=paper_code", "backbone=llama3").gate
    torch.manual_seed(0)
    gate = build_gate(_target_=section.target, hidden_size=64, **section.arguments()).train()
    states = [torch.randn(500, 64) for _ in range(4)]
    share = gate(*states).eq(0.5).float().mean().item()
    assert share == pytest.approx(values()["share_of_half_gates"], abs=0.01)
