"""A tiny siamese model and tasks of lm-evaluation-harness on local files."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from imsm.models.builder import build_model
from imsm.models.siamese.model import SiameseForCausalLM
from tests.helpers.adapters import lora
from tests.helpers.tiny_backbone import save_backbone

WORDS = ["red", "green", "blue", "black", "white", "grey", "pink", "brown"]


def write_backbone(folder: Path) -> Path:
    """Write a backbone whose vocabulary has each word with and without a leading space."""
    texts = [f"say {word} then {other}\n {word}" for word in WORDS for other in WORDS]
    return save_backbone(folder, texts=[*texts, *WORDS])


def perturbed_model(folder: Path) -> SiameseForCausalLM:
    """Return a siamese model with random adapter and gate."""
    torch.manual_seed(0)
    model = build_model(
        backbone={"name_or_path": str(folder)},
        adapter=lora(target_modules=["q_proj", "v_proj"], r=2, lora_alpha=8, lora_dropout=0.0),
        gate={
            "_target_": "imsm.models.siamese.gate.Gate",
            "inputs": ["query_original", "original", "tuned", "query_tuned"],
            "rank": 2,
        },
        pooling="mean",
        stream="interwoven",
        seed=0,
    )
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.normal_(std=0.4)
    return model.eval()


def write_tasks(folder: Path) -> Path:
    """Write a multiple-choice, a generation and a rolling task, and one with a missing column."""
    rows = [
        {"question": f"say {word}", "choices": [word, WORDS[i - 1], f"{word} then pink"], "label": 0}
        for i, word in enumerate(WORDS)
    ]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    common = {
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(folder / "rows.jsonl")}},
        "test_split": "test",
        "fewshot_split": "test",
    }
    (folder / "choice.yaml").write_text(
        json.dumps(
            common
            | {
                "task": "toy_choice",
                "output_type": "multiple_choice",
                "doc_to_text": "{{question}} then",
                "doc_to_choice": "{{choices}}",
                "doc_to_target": "{{label}}",
                "metric_list": [{"metric": "acc"}],
            }
        )
    )
    (folder / "lacking.yaml").write_text(
        json.dumps(
            common
            | {
                "task": "toy_lacking",
                "output_type": "generate_until",
                "doc_to_text": "{{missing}} then",
                "doc_to_target": "{{choices[0]}}",
                "metric_list": [{"metric": "exact_match"}],
            }
        )
    )
    (folder / "generate.yaml").write_text(
        json.dumps(
            common
            | {
                "task": "toy_generate",
                "output_type": "generate_until",
                "doc_to_text": "{{question}} then",
                "doc_to_target": "{{choices[0]}}",
                "generation_kwargs": {"until": ["\n"], "max_gen_toks": 6, "do_sample": False},
                "metric_list": [{"metric": "exact_match"}],
            }
        )
    )
    (folder / "rolling.yaml").write_text(
        json.dumps(
            common
            | {
                "task": "toy_rolling",
                "output_type": "loglikelihood_rolling",
                "doc_to_text": "",
                "doc_to_target": "{{question}} then {{choices[2]}}",
                "metric_list": [{"metric": "word_perplexity"}],
            }
        )
    )
    return folder
