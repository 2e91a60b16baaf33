"""Run the paper's released code on a tiny model and record its numbers for tests.

    git clone https://github.com/ECNU-Text-Computing/IMSM CODE && git -C CODE checkout 0858064
    python -m scripts.record_released_code CODE tests/models/siamese/released_code.safetensors

The files of CODE run unmodified: `siamese_model.py` for logits, loss, gradients and answers, and
`train.py` as a program for tokenization, batches and optimizer steps. Around them this script
replaces what a CPU lacks or what would hide a difference: `half()` does nothing (float32), CUDA
calls do nothing, the metrics' packages are empty modules, and `/dataset_out` is a temporary folder.

The record holds the weights of the tiny model, so that a test does not depend on a seed's numbers.
"""

from __future__ import annotations

import argparse
import builtins
import json
import os
import runpy
import subprocess
import sys
import tempfile
import types
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import peft
import torch
import transformers
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch.nn import functional
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

MODES = (0, 2, 4, 5, 6)
RANK, HIDDEN, WORDS, SEED = 3, 32, 48, 2024
PROMPT_LIMIT, ANSWER_LIMIT = 16, 8
LLAMA: dict[str, Any] = {
    "vocab_size": WORDS + 3,
    "hidden_size": HIDDEN,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
TRAINING: dict[str, Any] = {
    "max_input_length": PROMPT_LIMIT,
    "max_output_length": ANSWER_LIMIT,
    "device": "cpu",
    "data_device": "cpu",
    "peft": "lora",
    "lora_r": 2,
    "lora_alpha": 4,
    "lora_dropout": 0.0,
    "gate_rank": RANK,
    "dropout_prob": 0.0,
    "num_epochs": 7,
    "batch_size": 2,
    "accumulation_steps": 2,
    "optimizer": "adamw",
    "weight_decay": 0.01,
    "learning_rate": 0.003,
    "lr_schedule": "cosine",
    "num_warmup_ratio": 0.11,
}
"""Values of the released config.json, smaller where its are for 8 billion parameters."""


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("code", type=Path, help="a checkout of the released code")
    parser.add_argument("file", type=Path, help="the record to write")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="released-llama-") as name:
        tensors, values = record(arguments.code.resolve(), Path(name))
    commit = ["git", "-C", str(arguments.code), "rev-parse", "HEAD"]
    values["origin"] = {
        "repository": "https://github.com/ECNU-Text-Computing/IMSM",
        "commit": subprocess.run(commit, check=True, capture_output=True, text=True).stdout.strip(),
        "command": "python -m scripts.record_released_code CODE tests/models/siamese/released_code.safetensors",
        "versions": {module.__name__: module.__version__ for module in (torch, transformers, peft)},
        "seed": SEED,
    }
    save_file(
        {key: value.detach().contiguous().clone() for key, value in tensors.items()},
        arguments.file,
        metadata={"values": json.dumps(values, ensure_ascii=False)},
    )


def record(code: Path, folder: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Return tensors by "<mode>.<kind>.<name>", and all other values."""
    examples = random_examples()
    backbone = save_backbone(folder)
    tensors = {f"backbone.{name}": value for name, value in backbone.state_dict().items()}
    values: dict[str, Any] = {"examples": examples, "llama": LLAMA, "training": TRAINING, "modes": {}}
    (folder / "work").mkdir()
    data = folder / "work" / "train.json"
    data.write_text("".join(json.dumps(example) + "\n" for example in examples))
    with released(code, folder):
        for mode in MODES:
            found, entry = run_mode(mode, folder, data, examples)
            tensors |= {f"{mode}.{name}": value for name, value in found.items()}
            values["modes"][str(mode)] = entry
        values["share_of_half_gates"] = share_of_half_gates(folder, examples)
        values["tokenized"] = tokenized(new_model(0, folder).tokenizer, data)
    return tensors, values


def random_examples() -> list[dict[str, str]]:
    """Return 13 examples; the last two have a prompt and an answer over the limits."""
    generator = torch.Generator().manual_seed(1)

    def words(low: int, high: int) -> str:
        count = int(torch.randint(low, high, (), generator=generator))
        return " ".join(f"w{n}" for n in torch.randint(WORDS, (count,), generator=generator).tolist())

    examples = [{"input": words(3, 14), "output": words(1, 7)} for _ in range(11)]
    long_prompt, long_answer = (words(24, 25), words(2, 3)), (words(4, 5), words(12, 13))
    return [*examples, *({"input": prompt, "output": answer} for prompt, answer in (long_prompt, long_answer))]


def save_backbone(folder: Path) -> LlamaForCausalLM:
    """Write a random Llama with sharp attention and a tokenizer of words."""
    vocabulary = {word: index for index, word in enumerate(["<pad>", "<s>", "</s>", *(f"w{n}" for n in range(WORDS))])}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    inner.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="<pad>", bos_token="<s>", eos_token="</s>"
    ).save_pretrained(folder)
    torch.manual_seed(SEED)
    model = LlamaForCausalLM(LlamaConfig(**LLAMA))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.mul_(1.0 if "norm" in name or "embed" in name else 10.0)
    model.save_pretrained(folder)
    return model


@contextmanager
def released(code: Path, folder: Path) -> Iterator[None]:
    """Import the released modules from ``code``; what they write goes to ``folder``."""
    missing: dict[str, dict[str, Any]] = {"torch_optimizer": {}, "metric_evaluation": {"evaluation_all": print}}
    stubs = {name: types.ModuleType(name) for name in missing}
    for name, members in missing.items():
        stubs[name].__dict__.update(members)

    def moved(path: Any) -> Any:
        text = str(path)
        return folder / text[1:] if text.startswith("/dataset_out") else path

    makedirs, opened, working = os.makedirs, builtins.open, Path.cwd()
    with (
        mock.patch.dict(sys.modules, stubs),
        mock.patch.object(sys, "path", [str(code), *sys.path]),
        mock.patch.object(torch.Tensor, "half", lambda tensor: tensor),
        mock.patch.object(torch.nn.Module, "half", lambda module: module),
        mock.patch.object(torch.cuda, "init", lambda: None),
        mock.patch.object(torch, "set_num_threads", lambda number: None),
        mock.patch.object(os, "makedirs", lambda path, **options: makedirs(moved(path), **options)),
        mock.patch.object(builtins, "open", lambda path, *rest, **options: opened(moved(path), *rest, **options)),
    ):
        os.chdir(folder / "work")
        try:
            yield
        finally:
            os.chdir(working)


def new_model(mode: int, folder: Path, **options: Any) -> Any:
    """Return the released model with an adapter and a gate whose values are not the initial ones."""
    from siamese_model import SiameseModel  # the released code, found on sys.path

    torch.manual_seed(SEED)
    adapter = peft.LoraConfig(
        task_type="CAUSAL_LM", r=2, lora_alpha=4, lora_dropout=0.0, target_modules=["q_proj", "v_proj"]
    )
    model = SiameseModel(str(folder), "cpu", "cpu", peft_config=adapter, mode=mode, gate_rank=RANK, **options)
    perturb(model)
    return model


def perturb(model: Any) -> None:
    """Add noise to adapter and gate."""
    generator = torch.Generator().manual_seed(SEED)
    with torch.no_grad():
        for parameter in trainables(model).values():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))


def trainables(model: Any) -> dict[str, torch.nn.Parameter]:
    """Return adapter and gate by name."""
    found = {f"adapter.{name}": p for name, p in model.tuned_model.named_parameters() if "lora_" in name}
    if model.mode:
        found |= {"gate.down": model.linear_A[0].weight, "gate.up": model.linear_B[0].weight}
    return found


def run_mode(
    mode: int, folder: Path, data: Path, examples: list[dict[str, str]]
) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Return the numbers of one mode."""
    model = new_model(mode, folder)
    model.eval()
    for parameter in trainables(model).values():
        parameter.requires_grad_(True)
    tensors = {f"weights.{name}": value.detach().clone() for name, value in trainables(model).items()}
    batch = collate(model.tokenizer, examples[:4])
    logits, loss = loss_of(model, batch)
    loss.backward()
    answers = batch["labels"] != -100
    tensors["logits"] = logits[answers]
    gradients = {name: value.grad for name, value in trainables(model).items()}
    tensors |= {f"gradients.{name}": value for name, value in gradients.items() if value is not None}
    answer = model.forward_from_hidden_state_with_gate if mode else model.forward
    entry = {"loss": float(loss), "answers": [answer(example["input"], ANSWER_LIMIT) for example in examples[:11]]}
    trained, steps = run_training(mode, folder, data)
    return tensors | {f"trained.{name}": value for name, value in trained.items()}, entry | steps


def tokenized(tokenizer: Any, data: Path) -> list[tuple[list[int], int]]:
    """Return each example's tokens, and the number of its prompt's tokens."""
    from load_dataset import load_dataset  # the released code

    rows = load_dataset(data, tokenizer, PROMPT_LIMIT, ANSWER_LIMIT)
    return [(row["input_ids"], row["question_length"]) for row in rows]


def collate(tokenizer: Any, examples: list[dict[str, str]]) -> dict[str, torch.Tensor]:
    """Tokenize and pad with the released code."""
    from load_dataset import DataCollator, tokenize_function  # the released code

    rows = [tokenize_function(example, tokenizer, PROMPT_LIMIT, ANSWER_LIMIT) for example in examples]
    return DataCollator(tokenizer.pad_token_id or tokenizer.eos_token_id)(rows)


def loss_of(model: Any, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the released model's shifted logits and its loss."""
    if model.mode == 0:
        logits = model.cal_logits(batch["input_ids"], batch["attention_mask"])
    else:
        logits = model.cal_logits_from_hidden_state_with_gate(batch["input_ids"], batch["question_lengths"])
    return logits, functional.cross_entropy(logits.flatten(0, 1), batch["labels"].flatten(), ignore_index=-100)


def run_training(mode: int, folder: Path, data: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Run `train.py` as a program; return the final weights, batches, losses and tokens."""
    import load_dataset  # the released code
    import siamese_model  # the released code

    batches: list[list[tuple[int, ...]]] = []
    losses: list[float] = []
    rates: list[list[float]] = []
    collator, entropy = load_dataset.DataCollator.__call__, functional.cross_entropy
    started: list[dict[str, torch.Tensor]] = []
    original = siamese_model.SiameseModel.train
    step = torch.optim.AdamW.step

    def recorded_batch(self: Any, rows: list[dict[str, Any]]) -> Any:
        batches.append([tuple(row["input_ids"]) for row in rows])
        return collator(self, rows)

    def recorded_loss(*arguments: Any, **options: Any) -> torch.Tensor:
        loss = entropy(*arguments, **options)
        losses.append(float(loss))
        return loss

    def perturbed_at_start(self: Any) -> None:
        if not started:
            perturb(self)
            started.append({name: value.detach().clone() for name, value in trainables(self).items()})
        original(self)

    def recorded_step(self: Any, *arguments: Any) -> Any:
        rates.append([group["lr"] for group in self.param_groups])
        return step(self, *arguments)

    options = TRAINING | {
        "model_path": str(folder), "data_path": str(data), "test_data_path": str(data), "mode": mode,
        "dataset": f"mode{mode}", "momentum": 0.9, "top_rank": 8,
    }  # fmt: skip
    Path("config.json").write_text(json.dumps(options))
    with (
        mock.patch.object(load_dataset.DataCollator, "__call__", recorded_batch),
        mock.patch.object(functional, "cross_entropy", recorded_loss),
        mock.patch.object(siamese_model.SiameseModel, "train", perturbed_at_start),
        mock.patch.object(torch.optim.AdamW, "step", recorded_step),
        mock.patch.object(sys, "argv", ["train.py"]),
    ):
        trained = runpy.run_path(str(Path(sys.path[0]) / "train.py"), run_name="__main__")["siamese_model"]
    last = TRAINING["num_epochs"] - 1
    lines = (folder / f"dataset_out/mode{mode}/data_test_{last}.json").read_text().splitlines()
    answers = [json.loads(line)["answer"] for line in lines]
    found = {f"before.{name}": value for name, value in started[0].items()}
    found |= {f"after.{name}": value for name, value in trainables(trained).items()}
    rows = [tuple(row) for row, _ in tokenized(trained.tokenizer, data)]
    numbers = [[rows.index(row) for row in batch] for batch in batches]
    return found, {"micro_batches": numbers, "losses": losses, "learning_rates": rates, "trained_answers": answers}


def share_of_half_gates(folder: Path, examples: list[dict[str, str]]) -> float:
    """Return the share of gate values that are exactly 1/2 in training, with the released dropout."""
    model = new_model(5, folder, dropout_prob=0.1)
    batch = collate(model.tokenizer, examples)
    model.train()
    gates: list[torch.Tensor] = []
    sigmoid = torch.sigmoid

    def recorded(logit: torch.Tensor) -> torch.Tensor:
        gates.append(sigmoid(logit))
        return gates[-1]

    with mock.patch.object(torch, "sigmoid", recorded):
        for _ in range(20):
            loss_of(model, batch)
    return float(torch.cat([gate.flatten() for gate in gates]).eq(0.5).float().mean())


if __name__ == "__main__":
    main()
