"""What the arms of runs answered, as tables: a row per item, or a row per arm and task."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from imsm.config.identity import identity_without_seed
from imsm.evaluation.result import read_result
from imsm.reporting.runs import ComparedRun, baselines_of, runs_to_compare
from imsm.utils.errors import UserError
from imsm.utils.hashing import hash_json
from imsm.utils.paths import runs_root

if TYPE_CHECKING:
    import pandas

_ABOUT = ["run", "arm", "seed", "configuration", "task", "test_set"]


def item_table(folders: Sequence[Path]) -> pandas.DataFrame:
    """Every item of every arm of some runs: the original, the run itself, its controls.

    Args:
        folders: of finished runs. What several of them have (the original's answers to one test)
            stands there once.

    Returns:
        A row per item: ``run`` (a folder's name), ``arm``, ``seed`` (none of the original),
        ``configuration`` (equal for runs that differ in nothing but the seed), ``task``,
        ``test_set`` (of its fingerprint), ``id``, then the columns of
        `imsm.evaluation.predictions.read_items`, and ``score``: the item's score by the task's headline,
        ``headline``.

    Raises:
        UserError: a folder without a finished run, or whose items are not there.
    """
    import pandas

    found: dict[tuple[Path, str, str], pandas.DataFrame] = {}
    for folder in folders:
        for arm in _arms(folder):
            for task, entry in arm.result["evaluation"]["tasks"].items():
                key = (arm.folder, task, entry["test_set"])
                if key not in found:
                    found[key] = _items(arm, task)
    return pandas.concat(found.values(), ignore_index=True).astype({"seed": "Int64"})


def summary(items: pandas.DataFrame) -> pandas.DataFrame:
    """A row for each arm and task of `item_table`, in the order of their first items.

    Returns:
        ``items``; ``score``: the mean of the items' headline scores, in points (F1 and Matthews'
        correlation are of the whole test: here stand right answers); ``unparsed``: answers that
        could not be extracted; ``truncated``: that hit the token limit; ``tokens``: an answer's
        mean length; ``gold_loglik``: the mean over items of ln p of the likeliest accepted
        answer; ``gate_mean``: the original memory's mean weight.
    """
    marked = items.assign(
        unparsed=[not str(answer).strip() for answer in items["answer"]],
        truncated=~items["ended"].astype(bool),
        score=100 * items["score"],
    )
    groups = marked.groupby([*_ABOUT, "headline"], sort=False, dropna=False)
    return groups.agg(
        items=("id", "size"),
        score=("score", "mean"),
        unparsed=("unparsed", "sum"),
        truncated=("truncated", "sum"),
        tokens=("tokens", "mean"),
        reference_loglik=("reference_loglik", "mean"),
        gate_mean=("gate_mean", "mean"),
    ).reset_index()


def average_over_seeds(short: pandas.DataFrame) -> pandas.DataFrame:
    """A row for each arm and task of `summary`, over the runs that differ in the seed alone.

    Returns:
        ``run``: the first of them; ``seeds``: how many; ``score``: their mean, between the
        ``lowest`` and the ``highest``; the other columns of `summary` as means over seeds.
    """
    alike = ["configuration", "arm", "task", "test_set", "headline", "items"]
    means = short.groupby(alike, sort=False).agg(
        run=("run", "first"),
        seeds=("score", "size"),
        score=("score", "mean"),
        lowest=("score", "min"),
        highest=("score", "max"),
        **{name: (name, "mean") for name in ("unparsed", "truncated", "tokens", "reference_loglik", "gate_mean")},
    )
    return means.reset_index().drop(columns="configuration").set_index("run").reset_index()


def _arms(folder: Path) -> list[ComparedRun]:
    """The original lies beside the run, or, of a run in a place of its own, under the root."""
    result = read_result(folder)
    arms = runs_to_compare(folder, result, runs_root=folder.parent, siblings=False)
    if not arms[0].folder.is_dir():
        arms = runs_to_compare(folder, result, runs_root=runs_root(), siblings=False)
    return [*arms, *baselines_of(folder)]


def _items(arm: ComparedRun, task: str) -> pandas.DataFrame:
    found = arm.items(task)
    if found is None:
        raise UserError(
            f"{arm.folder}: the items of {task} are not there or damaged; judge the run again (the "
            "same command with mode=evaluate)"
        )
    headline = arm.entry(task)["headline"]
    table = found.reset_index()
    trained = arm.method != "original"
    about = [
        arm.folder.name if arm.method != "baseline" else arm.folder.parent.parent.name,
        arm.label,
        arm.result["identity"].get("seed") if trained else None,
        _configuration(arm),
        task,
        str(arm.entry(task)["test_set"])[:8],
    ]
    for place, (name, value) in enumerate(zip(_ABOUT, about, strict=True)):
        table.insert(place, name, value)
    return table.assign(headline=headline, score=table[f"score.{headline}"])


def _configuration(arm: ComparedRun) -> str:
    """Eight digits for all that decided an arm's training but the seed."""
    identity = {key: value for key, value in arm.result["identity"].items() if key != "baseline"}
    return hash_json(json.dumps(identity_without_seed(identity), sort_keys=True))[:8]
