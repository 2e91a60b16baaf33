"""The Hugging Face model card of a finished run."""

from collections.abc import Iterator, Mapping
from typing import Any

from huggingface_hub import ModelCard, ModelCardData

from imsm.config.identity import is_imported, replay_identity, training_chain
from imsm.reporting.render.escaping import markdown_text
from imsm.reporting.render.formatting import (
    QUANTIZED_ORIGINAL,
    backbone_label,
    format_number,
    format_provenance,
    join_names,
)
from imsm.reporting.render.table import Table
from imsm.reporting.runs import headline, tests_at_chance
from imsm.utils.control_characters import escape_controls
from imsm.utils.paths import is_local_path

_SHIPPED = "imsm:"
_NOT_PUBLIC = {
    "miniature": "synthetic data of the miniature, not the public dataset of that name",
    "local": "data from a local folder",
}
"""Description of the data sources that are not public datasets, by kind."""

_TEMPLATE = """\
# {name}

{backbone} with {peft}, {origin}. The repository holds {contents}, without
the backbone's weights.

```python
import imsm

model = imsm.SiameseForCausalLM.from_pretrained(FOLDER)
```

## Scores

{scores}

Scores are in points. `trained on` marks the tasks that the run was trained on. They are not comparable with scores on
other examples or under other protocols.{chance}

## Training

{training}

{sources}## Limitations

Fine-tuning forgets: the table shows the losses on the evaluated tasks, and other tasks were not evaluated. The
backbone's license and limitations apply to this adapter too. No safety training was added.{quantized}

## Provenance

{provenance}
"""


def model_card(result: Mapping[str, Any]) -> str:
    """Return the card as Markdown with its YAML header; ``result`` is of a run that trained something."""
    config, counts = result["config"], result["trainable_parameters"]
    path = config["backbone"]["name_or_path"]
    # only datasets on the Hub: the names of synthetic and local ones would link to other data
    paths = [hub["path"] for _, kind, hub in _training_data(result) if kind not in _NOT_PUBLIC and hub]
    data = ModelCardData(
        library_name="imsm",
        base_model=None if is_local_path(path) or path.startswith(_SHIPPED) else path,
        datasets=list(dict.fromkeys(paths)) or None,
        pipeline_tag="text-generation",
        tags=["imsm", "peft", config["peft"]["name"], result["method"]],
    )
    gate = f" and the gate ({counts['gate']:,})" if counts["gate"] else ""
    text = _TEMPLATE.format(
        name=markdown_text(result["name"]),
        backbone=markdown_text(backbone_label(config)),
        peft=markdown_text(config["peft"]["name"]),
        origin=markdown_text(_origin(result)),
        contents=f"the adapter ({counts['adapter']:,} parameters){gate}",
        scores=_scores(result).to_markdown(),
        chance=markdown_text(_chance(result)),
        quantized=f" {QUANTIZED_ORIGINAL}" if config["backbone"].get("quantization") is not None else "",
        training=_training(result),
        sources=_sources(result),
        provenance="\n".join(f"- {markdown_text(line)}" for line in format_provenance(result)),
    )
    return str(ModelCard(escape_controls(f"---\n{data.to_yaml()}\n---\n{text}")))


def _origin(result: Mapping[str, Any]) -> str:
    """Return where the adapter is from: its training, or the place that it was imported from."""
    if is_imported(result["identity"]):
        source = result["config"]["imported"]["source"]
        return "an adapter that was trained elsewhere" + ("" if is_local_path(source) else f" ({source})")
    return f"trained on {_learned(result)} (method {result['method']}, seed {result['config']['seed']})"


def _learned(result: Mapping[str, Any]) -> str:
    """Return what was learned, in order, e.g. "mrpc, then ropes with replay of webq"."""
    names = []
    for identity in training_chain(result["identity"]):
        replay = replay_identity(identity)
        names.append(identity["data"]["name"] + (f" with replay of {replay['task']}" if replay else ""))
    if "frozen_adapter" in result["identity"]:
        *adapter, gate = names
        return f"{', then '.join(adapter) or 'unknown data'}, with a gate for that frozen adapter trained on {gate}"
    return ", then ".join(names)


def _training(result: Mapping[str, Any]) -> str:
    """Describe the run's own training; parent runs have their own cards."""
    training, recipe = result["training"] or {}, result["config"]["trainer"]
    identity = result["identity"]
    if is_imported(identity):
        return "Unknown: the adapter was trained elsewhere, and only evaluated here."
    rate, part = recipe["learning_rate"], ""
    if "previous_stage" in identity:
        part = f"Last stage ({identity['data']['name']}): "
    elif "frozen_adapter" in identity:
        # without its own rate the gate is trained with the recipe's
        rate, part = recipe.get("gate_learning_rate") or rate, "Gate only: "
    steps, examples = training.get("steps"), training.get("examples")
    return f"{part}{steps} steps on {examples} examples, recipe {recipe['name']}, learning rate {rate}."


def _sources(result: Mapping[str, Any]) -> str:
    """Return a paragraph for each kind of data that is not a public dataset."""
    # dicts as ordered sets: a dataset can occur in several stages
    names_by_kind: dict[str, dict[str, None]] = {}
    for name, kind, _ in _training_data(result):
        names_by_kind.setdefault(kind, {})[name] = None
    return "".join(
        f"{', '.join(names_by_kind[kind])}: {text}.\n\n" for kind, text in _NOT_PUBLIC.items() if kind in names_by_kind
    )


def _training_data(result: Mapping[str, Any]) -> Iterator[tuple[str, str, Mapping[str, Any] | None]]:
    """Yield name, kind of source and Hub location of all training and replay data."""
    for identity in training_chain(result["identity"]):
        data, replay = identity["data"], replay_identity(identity)
        yield data["name"], data["source"]["kind"], data.get("hub")
        if replay:
            hub = result["config"]["replay_tasks"][replay["task"]]["hub"]
            yield replay["task"], replay["source"]["kind"], hub


def _chance(result: Mapping[str, Any]) -> str:
    """Name the tests on which the original is at chance and those that show forgetting."""
    originals = result["evaluation"].get("original", {})
    tests = [task for task, entry in result["evaluation"]["tasks"].items() if entry["role"] != "target"]
    at_chance = tests_at_chance(originals, tests)
    if not at_chance:
        return ""
    rest = [task for task in tests if task not in at_chance]
    return (
        f" The original is at chance on {' and '.join(at_chance)}, which therefore cannot show forgetting; stability "
        f"in the report is over {join_names(rest)}."
    )


def _scores(result: Mapping[str, Any]) -> Table:
    originals = result["evaluation"].get("original", {})
    records = []
    for task, entry in result["evaluation"]["tasks"].items():
        metric = headline(entry)
        records.append(
            {
                "task": task,
                "metric": metric,
                "trained on": "yes" if entry["trained_on"] else "",
                "examples": str(entry["num_examples"]),
                "original": format_number(originals.get(task, {}).get("metrics", {}).get(metric)),
                "this model": format_number(entry["metrics"][metric]),
            }
        )
    return Table.from_records(records, text_columns=3)
