"""`get_siamese_model`: trained by transformers' Trainer and TRL's SFTTrainer, saved, resumed, merged."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import AdaLoraConfig, IA3Config, LoraConfig, PrefixTuningConfig, PromptTuningConfig, get_peft_model
from transformers import DataCollatorForSeq2Seq, Trainer, TrainingArguments
from trl import SFTConfig, SFTTrainer

import imsm
from imsm.utils.errors import UserError
from tests.models.siamese.tiny import (
    ATTENTION,
    labelled_batch,
    padded,
    perturb,
    prompts,
    tiny_backbone,
    tiny_tokenizer,
)

PROMPT = 6


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("backbone")
    tiny_backbone("llama").save_pretrained(folder)
    return str(folder)


def lora() -> LoraConfig:
    return LoraConfig(r=4, target_modules=ATTENTION)


def rows() -> list[list[int]]:
    """Return tasks to learn: repeat the first two tokens of a prompt."""
    generator = torch.Generator().manual_seed(0)
    drawn = [torch.randint(3, 97, (PROMPT,), generator=generator).tolist() for _ in range(16)]
    return [[*row, *row[:2], 2] for row in drawn]


def tokenized() -> Dataset:
    columns = [
        {"input_ids": row, "attention_mask": [1] * len(row), "labels": [-100] * PROMPT + row[PROMPT:]}
        for row in rows()
    ]
    return Dataset.from_list(columns)


def options(folder: Path, **more: Any) -> dict[str, Any]:
    return {
        "output_dir": str(folder / "out"),
        "per_device_train_batch_size": 4,
        "learning_rate": 5e-2,
        "max_steps": 12,
        "save_steps": 6,
        "logging_steps": 1,
        "report_to": [],
        "use_cpu": True,
        "disable_tqdm": True,
        **more,
    }


def trainer(model: imsm.SiameseForCausalLM, folder: Path, **more: Any) -> Trainer:
    return Trainer(
        model=model,
        args=TrainingArguments(**options(folder, **more)),
        train_dataset=tokenized(),
        eval_dataset=tokenized(),
        data_collator=DataCollatorForSeq2Seq(tiny_tokenizer()),
    )


def losses(trained: Trainer) -> list[float]:
    return [entry["loss"] for entry in trained.state.log_history if "loss" in entry]


def values(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in model.named_parameters()}


def logits(model: imsm.SiameseForCausalLM) -> torch.Tensor:
    ids = torch.tensor(prompts()[:1])
    query = {"query_mask": torch.ones_like(ids)} if model.stream == "interwoven" else {}
    with torch.no_grad():
        return model.eval()(ids, **query).logits


def test_trainer_trains_adapter_and_gate_and_resumes(backbone: str, tmp_path: Path) -> None:
    model = imsm.get_siamese_model(backbone, lora())
    before, learned = values(model), {n for n, p in model.named_parameters() if p.requires_grad}
    assert learned == {n for n in before if "lora_" in n or n.startswith("gate.")}
    trained = trainer(model, tmp_path)
    trained.train()
    assert losses(trained)[-1] < losses(trained)[0] - 1
    after = values(model)
    assert {n for n in before if not torch.equal(before[n], after[n])} == learned
    assert trained.evaluate()["eval_loss"] < losses(trained)[0] - 1

    resumed = imsm.get_siamese_model(backbone, lora())
    trainer(resumed, tmp_path).train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-6"))
    assert all(torch.equal(after[name], value) for name, value in values(resumed).items())

    again = imsm.SiameseForCausalLM.from_pretrained(tmp_path / "out" / "checkpoint-12")
    assert torch.equal(logits(again), logits(model))


def test_sft_trainer_computes_the_loss_of_the_model_and_trains_it(backbone: str, tmp_path: Path) -> None:
    model = imsm.get_siamese_model(backbone, lora())
    words = [[f"w{token}" for token in row] for row in rows()]
    data = Dataset.from_list(
        [{"prompt": " ".join(w[:PROMPT]), "completion": " " + " ".join(w[PROMPT : PROMPT + 2])} for w in words]
    )
    tokenizer = tiny_tokenizer()
    sft = SFTTrainer(
        model=model, args=SFTConfig(**options(tmp_path, bf16=False)), train_dataset=data, processing_class=tokenizer
    )
    batch = next(iter(sft.get_train_dataloader()))
    perturb(model)
    model.eval()
    with torch.no_grad():
        torch.testing.assert_close(sft.compute_loss(model, dict(batch)), model(**batch).loss)
    frozen = {name: value for name, value in values(model).items() if not model.get_parameter(name).requires_grad}
    sft.train()
    assert losses(sft)[-1] < losses(sft)[0] - 0.5
    assert all(torch.equal(value, values(model)[name]) for name, value in frozen.items())
    again = imsm.SiameseForCausalLM.from_pretrained(tmp_path / "out" / "checkpoint-12")
    assert torch.equal(logits(again), logits(model))


def test_packed_rows_are_refused(backbone: str) -> None:
    model = imsm.get_siamese_model(backbone, lora())
    ids = torch.tensor(prompts()[:1])
    with pytest.raises(ValueError, match="packing"):
        model(input_ids=ids, labels=ids, position_ids=torch.arange(ids.shape[1])[None], fused_lm_head=True)


@pytest.mark.parametrize("reentrant", [True, False])
def test_gradient_checkpointing_leaves_the_gradients_unchanged(backbone: str, reentrant: bool) -> None:
    _, batch = labelled_batch(side="right")
    gradients = []
    for checkpointing in (False, True):
        model = imsm.get_siamese_model(backbone, lora())
        perturb(model)
        if checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
        model.train()
        model(**batch).loss.backward()
        gradients.append({n: p.grad for n, p in model.named_parameters() if p.requires_grad})
    plain, checkpointed = gradients
    for name, gradient in plain.items():
        torch.testing.assert_close(checkpointed[name], gradient, msg=name)


def test_padding_side_does_not_change_the_loss(backbone: str) -> None:
    model = imsm.get_siamese_model(backbone, lora())
    perturb(model)
    left, right = (model(**labelled_batch(side=side)[1]).loss for side in ("left", "right"))
    torch.testing.assert_close(left, right)


def test_loaded_model_is_trained_further(backbone: str, tmp_path: Path) -> None:
    imsm.get_siamese_model(backbone, lora()).save_pretrained(tmp_path / "saved")
    model = imsm.SiameseForCausalLM.from_pretrained(tmp_path / "saved", trainable=True)
    trainable, total = model.get_nb_trainable_parameters()
    assert (trainable, total) == imsm.get_siamese_model(backbone, lora()).get_nb_trainable_parameters()
    trained = trainer(model, tmp_path, max_steps=6)
    trained.train()
    assert losses(trained)[-1] < losses(trained)[0] - 0.5


def test_backbone_in_memory_is_used_in_place(tmp_path: Path) -> None:
    plain = tiny_backbone("llama")
    state = torch.get_rng_state()
    model = imsm.get_siamese_model(plain, lora(), seed=4)
    assert model.backbone is plain and torch.equal(torch.get_rng_state(), state)
    with pytest.raises(UserError, match="name_or_path"):
        model.save_pretrained(tmp_path / "saved")
    plain.save_pretrained(tmp_path / "plain")
    assert not (tmp_path / "saved").exists()


def test_gates(backbone: str, capsys: pytest.CaptureFixture[str]) -> None:
    sizes = {
        gate if isinstance(gate, str) else repr(gate): sum(p.numel() for p in model.gate.parameters())
        for gate in ("query", "no_query", "learned_scalar", {"rank": 2}, {"name": "query_only", "rank": 3})
        for model in [imsm.get_siamese_model(backbone, lora(), gate=gate)]
    }
    assert list(sizes.values()) == [8 * 5 * 32, 8 * 3 * 32, 1, 2 * 5 * 32, 3 * 3 * 32]
    own = {"_target_": "imsm.models.siamese.gate.Gate", "inputs": [], "rank": None, "init_value": 0.25}
    model = imsm.get_siamese_model(backbone, lora(), gate=own)
    assert float(model.gate(*torch.ones(2, 1, 32), None, None).detach()[0, 0]) == 0.25 and model.stream == "interwoven"
    plain = imsm.get_siamese_model(backbone, lora(), gate=None, pooling="last")
    assert plain.stream == "tuned" and plain.gate is None
    plain.print_trainable_parameters()
    trainable = sum(p.numel() for p in plain.parameters() if p.requires_grad)
    assert capsys.readouterr().out.startswith(f"trainable params: {trainable:,} || all params: ")


def test_unsuitable_arguments_are_one_clear_error(backbone: str) -> None:
    adapted = get_peft_model(tiny_backbone("llama"), lora())
    for arguments, key in (
        ((adapted, lora()), "PeftModel"),
        ((adapted.get_base_model(), lora()), "already has an adapter"),
        ((imsm.get_siamese_model(backbone, lora()), lora()), "SiameseForCausalLM"),
        ((backbone, AdaLoraConfig(total_step=10)), "AdaLoraConfig"),
        ((backbone, LoraConfig(task_type="SEQ_CLS")), "task_type"),
        ((backbone, LoraConfig(target_modules=["nothing"])), "nothing"),
        ((f"{backbone}/nowhere", lora()), "cannot be loaded"),
    ):
        with pytest.raises(UserError, match=key):
            imsm.get_siamese_model(*arguments)
    with pytest.raises(UserError, match=r"gate=qurey.*query"):
        imsm.get_siamese_model(backbone, lora(), gate="qurey")
    with pytest.raises(UserError, match="pooling='sum'"):
        imsm.get_siamese_model(backbone, lora(), pooling="sum")


@pytest.mark.parametrize(
    "config",
    [
        lora(),
        LoraConfig(r=4, target_modules=ATTENTION, use_dora=True),
        IA3Config(target_modules=["k_proj", "v_proj", "down_proj"], feedforward_modules=["down_proj"]),
    ],
)
def test_merged_tuned_stream_is_a_plain_model_with_equal_logits(backbone: str, config: Any, tmp_path: Path) -> None:
    model = imsm.get_siamese_model(backbone, config)
    perturb(model, scale=0.1)
    with pytest.raises(UserError, match="stream='interwoven'"):
        model.merge_and_unload()
    model.stream = "tuned"
    tuned = logits(model)
    plain = model.merge_and_unload()
    assert type(plain).__name__ == "LlamaForCausalLM" and not [n for n, _ in plain.named_parameters() if "lora" in n]
    plain.save_pretrained(tmp_path)
    loaded = type(plain).from_pretrained(tmp_path)
    with torch.no_grad():
        torch.testing.assert_close(loaded(torch.tensor(prompts()[:1])).logits, tuned, rtol=1e-4, atol=1e-4)
    with pytest.raises(UserError, match="removed"):
        logits(model)


def test_original_stream_is_unloaded(backbone: str) -> None:
    model = imsm.get_siamese_model(backbone, lora())
    perturb(model)
    model.stream = "original"
    original = logits(model)
    with torch.no_grad():
        assert torch.equal(model.merge_and_unload()(torch.tensor(prompts()[:1])).logits, original)


@pytest.mark.parametrize(
    "config", [PromptTuningConfig(num_virtual_tokens=3), PrefixTuningConfig(num_virtual_tokens=3)]
)
def test_method_without_weights_to_merge_is_refused(backbone: str, config: Any) -> None:
    model = imsm.get_siamese_model(backbone, config)
    model.stream = "tuned"
    before = logits(model)
    with pytest.raises(UserError, match="cannot be merged"):
        model.merge_and_unload()
    assert torch.equal(logits(model), before)


def test_generation_equals_a_saved_and_loaded_model(backbone: str, tmp_path: Path) -> None:
    model = imsm.get_siamese_model(backbone, lora())
    perturb(model)
    model.save_pretrained(tmp_path / "saved")
    again = imsm.SiameseForCausalLM.from_pretrained(tmp_path / "saved")
    ids, mask = padded(prompts(), side="left")
    tokens = model.eval().generate(ids, attention_mask=mask, max_new_tokens=5)
    assert torch.equal(again.generate(ids, attention_mask=mask, max_new_tokens=5), tokens)
