"""The model card of a finished run: a hub shows it beside the adapter and the gate."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas
from huggingface_hub import ModelCard, ModelCardData

from imsm.config import is_local
from imsm.report.card import provenance_of
from imsm.report.comparison import headline

_SHIPPED = "imsm:"


def model_card(result: Mapping[str, Any]) -> str:
    """The card as Markdown with its YAML head, all of it from `result.json`.

    Args:
        result: of a run that trained something.
    """
    config = result["config"]
    backbone, target = config["backbone"], config["data"]["name"]
    hub = config["data"].get("hub") or {}
    path = backbone["path"]
    data = ModelCardData(
        library_name="imsm",
        base_model=None if is_local(path) or path.startswith(_SHIPPED) else path,
        datasets=[hub["path"]] if hub.get("path") else None,
        pipeline_tag="text-generation",
        tags=["imsm", "peft", config["peft"]["name"], result["method"]],
    )
    counts = result["trainable_parameters"]
    training = result["training"] or {}
    lines = [
        f"# {result['name']}",
        "",
        f"{backbone['name']} with {config['peft']['name']}, trained on {target} "
        f"(method {result['method']}, seed {config['seed']}): the adapter "
        f"({counts['adapter']:,} parameters)"
        + (f" and the gate ({counts['gate']:,})" if counts["gate"] else "")
        + ", without the backbone's weights.",
        "",
        "```python",
        "import imsm",
        "",
        "model = imsm.SiameseForCausalLM.from_pretrained(FOLDER)",
        "```",
        "",
        "## Scores",
        "",
        _scores(result).to_markdown(index=False, disable_numparse=True),
        "",
        "In points, on the items that the run was asked; `trained on` says what it learned from. "
        "Scores of other items or protocols cannot be compared with these.",
        "",
        "## Training",
        "",
        f"{training.get('steps')} steps on {training.get('examples')} examples, recipe "
        f"{config['trainer']['name']}, learning rate {config['trainer']['learning_rate']}.",
        "",
        "## Limits",
        "",
        "It forgets: the table says what was lost on other tasks, and only those were asked. The "
        "backbone's licence and its limits hold for this adapter too; it adds no safety training.",
        "",
        "## On what this rests",
        "",
        *(f"- {line}" for line in provenance_of(result)),
        "",
    ]
    return str(ModelCard(f"---\n{data.to_yaml()}\n---\n" + "\n".join(lines)))


def _scores(result: Mapping[str, Any]) -> pandas.DataFrame:
    originals = result["evaluation"].get("original", {})
    rows = []
    for task, entry in result["evaluation"]["tasks"].items():
        metric = headline(entry)
        before = originals.get(task, {}).get("metrics", {}).get(metric)
        rows.append(
            {
                "task": task,
                "metric": metric,
                "items": str(entry["items"]),
                "original": "–" if before is None else f"{before:.1f}",
                "this model": f"{entry['metrics'][metric]:.1f}",
                "trained on": "yes" if entry["trained_on"] else "",
            }
        )
    return pandas.DataFrame(rows)
