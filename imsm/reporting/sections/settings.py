"""Section: command, date, hyperparameters and cost of the run."""

from collections.abc import Mapping
from typing import Any

from imsm.reporting.render.document import Section
from imsm.reporting.render.formatting import QUANTIZED_ORIGINAL, backbone_label, format_number
from imsm.reporting.render.table import Table
from imsm.reporting.report_data import ReportData
from imsm.utils.formatting import format_bytes, format_duration
from imsm.utils.messages import format_value

_RECIPE = {
    "learning_rate": "learning rate",
    "gate_learning_rate": "gate learning rate",
    "num_epochs": "epochs",
    "global_batch_size": "batch size",
    "kl_beta": "weight of the KL term",
    "token_weight": "token weight",
}
"""Hyperparameters of the section, by key of `trainer`."""
_ADAPTER = ("peft_type", "r", "lora_alpha", "lora_dropout")


def build_settings(data: ReportData) -> Section:
    """Build the section; what an older result does not record is left out."""
    result = data.focus.result
    config, training = result["config"], result["training"] or {}
    rows = {
        "command": training.get("command"),
        "trained": training.get("finished"),
        "model": f"{backbone_label(config)} ({config['backbone']['name_or_path']})",
        "original": QUANTIZED_ORIGINAL if config["backbone"].get("quantization") is not None else None,
        "hyperparameters": _hyperparameters(config) if training else None,
        "training": _training(result, training) if training else None,
        "evaluation": _evaluation(result),
    }
    return Section(
        name="run",
        title="This run",
        table=Table(
            columns=["", ""], rows=[[name, value] for name, value in rows.items() if value is not None], text_columns=2
        ),
        wrap=True,
    )


def _hyperparameters(config: Mapping[str, Any]) -> str:
    peft, gate, trainer = config["peft"], config["gate"], config["trainer"]
    adapter = [f"{key} {format_value(peft[key])}" for key in _ADAPTER if peft.get(key) is not None]
    parts = [f"{peft['name']} ({', '.join(adapter)})" if adapter else str(peft["name"])]
    if config["method"]["stream"] == "interwoven":
        parts.append(f"gate {gate['name']}" + (f" of rank {gate['rank']}" if gate.get("rank") else ""))
    parts += [
        f"{name} {format_value(trainer[key])}"
        for key, name in _RECIPE.items()
        if trainer.get(key) not in (None, "none")
    ]
    return ", ".join([f"recipe {trainer['name']}", *parts, f"seed {config['seed']}"])


def _training(result: Mapping[str, Any], training: Mapping[str, Any]) -> str:
    count = sum(result["trainable_parameters"].values())
    machine = training.get("machine", result["machine"])
    parts = [
        f"{count:,} trainable parameters",
        f"{training.get('steps')} steps on {training.get('examples')} examples",
        f"{training['tokens']:,} tokens" if training.get("tokens") is not None else None,
        f"{format_duration(training.get('seconds'))} on {machine['device_name']}",
        f"{format_bytes(training.get('peak_memory_bytes'))} of memory",
    ]
    return ", ".join(part for part in parts if part is not None)


def _evaluation(result: Mapping[str, Any]) -> str:
    entries = result["evaluation"]["tasks"].values()
    examples, seconds = sum(entry["num_examples"] for entry in entries), sum(entry["seconds"] for entry in entries)
    per_example = format_number(seconds / examples if examples else None, digits=2)
    return f"{examples:,} examples, {format_duration(seconds)} ({per_example} s per example)"
