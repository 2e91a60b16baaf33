r"""One arm's answers to one task, a row per item: what statistics, reports and tables read.

    {"id": "webq/test/17", "group": "webq/test/17", "prompt_hash": "5f0c…",
     "generation": " paris .\n", "tokens": 3, "ended": true, "answer": "paris", "references": ["Paris"],
     "scores": {"contain": 1.0, "exact_match": 1.0}, "reference_loglik": -1.7, "reference_tokens": 2,
     "gate_mean": 0.48, "gate_per_token": [0.47, 0.48, 0.49],
     "token_texts": [" paris", " .", "\n"]}

The file is made anew from the ledger whenever an arm is judged; two arms are paired by ``id``.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from imsm.utils.errors import UserError
from imsm.utils.files import write_atomic

if TYPE_CHECKING:
    import pandas

FILE = "predictions.jsonl"
COLUMNS = (
    "id",
    "group",
    "prompt_hash",
    "generation",
    "tokens",
    "ended",
    "answer",
    "golds",
    "scores",
    "reference_loglik",
    "reference_tokens",
    "gate_mean",
    "gate_per_token",
    "token_texts",
)


def task_dir(folder: Path, *, task: str, test_set: str) -> Path:
    """Where an arm's answers to a task lie.

    Args:
        folder: of the run, or of a control.
        task: its name.
        test_set: the fingerprint of its items, as `result.json` keeps it.
    """
    return folder / "evaluation" / f"{task}-{test_set[:8]}"


def write_predictions(folder: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write a task folder's rows, whole or not at all.

    Raises:
        ValueError: a row that has other keys than ``COLUMNS``.
        OSError: it cannot be written.
    """
    lines = []
    for row in rows:
        if set(row) != set(COLUMNS):
            raise ValueError(f"an item has the keys {COLUMNS}, not {tuple(row)}")
        lines.append(json.dumps(row, ensure_ascii=False) + "\n")
    folder.mkdir(parents=True, exist_ok=True)
    write_atomic(folder / FILE, "".join(lines))


def read_predictions(folder: Path, *, task: str, test_set: str) -> pandas.DataFrame:
    """An arm's items of a task, indexed by ``id``, in the test set's order.

    Args:
        folder: of the run, or of a control.
        task: its name.
        test_set: the fingerprint of its items, as `result.json` keeps it.

    Returns:
        The columns of ``COLUMNS``, and ``score.<metric>`` for each metric in place of ``scores``.

    Raises:
        UserError: there are none, or they are damaged.
    """
    import pandas

    path = task_dir(folder, task=task, test_set=test_set) / FILE
    try:
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]
        scores = [{f"score.{name}": value for name, value in r["scores"].items()} for r in rows]
        plain = [{column: row[column] for column in COLUMNS if column != "scores"} for row in rows]
    except FileNotFoundError as error:
        raise UserError(f"{path}: is not there; judge the run again (the same command with mode=evaluate)") from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{path}: is damaged ({type(error).__name__}: {error}); judge the run again (the same "
            "command with mode=evaluate), which makes it anew from the ledger"
        ) from error
    found = [one | other for one, other in zip(plain, scores, strict=True)]
    return pandas.DataFrame(found, columns=None if found else list(COLUMNS)).set_index("id")
