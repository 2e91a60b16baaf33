"""The model card of a finished run: a hub shows it beside the adapter and the gate."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import pandas
from huggingface_hub import ModelCard, ModelCardData

from imsm.config.identity import training_chain
from imsm.reporting.render.table import provenance_of
from imsm.reporting.score_table import headline
from imsm.utils.paths import is_local_path

_SHIPPED = "imsm:"
_NOT_PUBLIC = {
    "miniature": "the miniature's invented data, not the public dataset by that name",
    "local": "data from a folder of one's own",
}
"""What is to be said of data by the kind of their source."""


def model_card(result: Mapping[str, Any]) -> str:
    """The card as Markdown with its YAML head, all of it from `result.json`.

    Args:
        result: of a run that trained something.
    """
    config = result["config"]
    backbone = config["backbone"]
    path = backbone["name_or_path"]
    data = ModelCardData(
        library_name="imsm",
        base_model=None if is_local_path(path) or path.startswith(_SHIPPED) else path,
        datasets=_datasets(result) or None,
        pipeline_tag="text-generation",
        tags=["imsm", "peft", config["peft"]["name"], result["method"]],
    )
    counts = result["trainable_parameters"]
    lines = [
        f"# {result['name']}",
        "",
        f"{backbone['name']} with {config['peft']['name']}, trained on {_learned(result)} "
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
        _training(result),
        "",
        *_sources(result),
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


def _learned(result: Mapping[str, Any]) -> str:
    """What was learned, in order: `mrpc, then ropes with questions of webq`."""
    names = []
    for identity in training_chain(result["identity"]):
        replay = identity["peft"].get("replay")
        beside = f" with questions of {replay['task']}" if replay else ""
        names.append(identity["data"]["name"] + beside)
    if "frozen_adapter" in result["identity"]:
        *adapter, gate = names
        return f"{', then '.join(adapter)}, and a gate beside that adapter on {gate}"
    return ", then ".join(names)


def _training(result: Mapping[str, Any]) -> str:
    """What the run's own training took; those before it have cards of their own."""
    training, recipe = result["training"] or {}, result["config"]["trainer"]
    identity = result["identity"]
    rate, which = recipe["learning_rate"], ""
    if "previous_stage" in identity:
        which = f"The last stage, {identity['data']['name']}: "
    elif "frozen_adapter" in identity:
        rate, which = recipe.get("gate_learning_rate") or rate, "The gate alone: "
    return (
        f"{which}{training.get('steps')} steps on {training.get('examples')} examples, recipe "
        f"{recipe['name']}, learning rate {rate}."
    )


def _sources(result: Mapping[str, Any]) -> list[str]:
    """A paragraph on data that are not the public datasets, whatever their names."""
    by_kind: dict[str, dict[str, None]] = {}
    for name, kind, _ in _read(result):
        by_kind.setdefault(kind, {})[name] = None
    lines = []
    for kind, said in _NOT_PUBLIC.items():
        if kind in by_kind:
            lines += [f"{', '.join(by_kind[kind])}: {said}.", ""]
    return lines


def _datasets(result: Mapping[str, Any]) -> list[str]:
    """The hub's datasets that were learned from, each once."""
    paths = [hub["path"] for _, kind, hub in _read(result) if kind not in _NOT_PUBLIC and hub]
    return list(dict.fromkeys(paths))


def _read(result: Mapping[str, Any]) -> Iterator[tuple[str, str, Mapping[str, Any] | None]]:
    """What was learned from: name, kind of source, and the dataset's place on the hub."""
    for identity in training_chain(result["identity"]):
        data, replay = identity["data"], identity["peft"].get("replay")
        yield data["name"], data["source"]["kind"], data.get("hub")
        if replay:
            hub = result["config"]["replay_tasks"][replay["task"]]["hub"]
            yield replay["task"], replay["source"]["kind"], hub


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
                "items": str(entry["num_examples"]),
                "original": "–" if before is None else f"{before:.1f}",
                "this model": f"{entry['metrics'][metric]:.1f}",
                "trained on": "yes" if entry["trained_on"] else "",
            }
        )
    return pandas.DataFrame(rows)
