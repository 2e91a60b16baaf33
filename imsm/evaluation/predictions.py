r"""`predictions.jsonl`: one row per example, read by statistics, reports and tables.

    {"id": "webq/test/17", "group": "webq/test/17", "prompt_hash": "5f0c…",
     "response": " paris .\n", "tokens": 3, "ended": true, "answer": "paris", "references": ["Paris"],
     "scores": {"contain": 1.0, "exact_match": 1.0}, "reference_loglik": -1.7, "reference_tokens": 2,
     "gate_mean": 0.48, "gate_per_token": [0.47, 0.48, 0.49], "token_texts": [" paris", " .", "\n"]}

The file is rewritten from the response cache by every evaluation; runs are paired by ``id``.
"""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pandas

from imsm.utils.errors import UserError
from imsm.utils.files import write_atomic

FILE = "predictions.jsonl"
COLUMNS = (
    *("id", "group", "prompt_hash", "response", "tokens", "ended", "answer", "references", "scores"),
    *("reference_loglik", "reference_tokens", "gate_mean", "gate_per_token", "token_texts"),
)


def task_dir(folder: Path, *, task: str, test_set: str) -> Path:
    """Return a task's directory in a run directory; ``test_set`` is `EvalSet.fingerprint`."""
    return folder / "evaluation" / f"{task}-{test_set[:8]}"


def write_predictions(folder: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write the rows atomically.

    Raises:
        ValueError: A row has other keys than ``COLUMNS``.
        OSError: The file cannot be written.
    """
    lines = []
    for row in rows:
        if set(row) != set(COLUMNS):
            raise ValueError(f"keys={tuple(row)}: a prediction has the keys {COLUMNS}")
        lines.append(json.dumps(row, ensure_ascii=False) + "\n")
    folder.mkdir(parents=True, exist_ok=True)
    write_atomic(folder / FILE, "".join(lines))


def read_predictions(folder: Path, *, task: str, test_set: str) -> pandas.DataFrame:
    """Read a task's predictions, indexed by ``id``, in the order of the evaluation set.

    Returns:
        The columns of ``COLUMNS``, with one column ``score.<metric>`` per metric instead of ``scores``.

    Raises:
        UserError: The file is missing or damaged.
    """
    path = task_dir(folder, task=task, test_set=test_set) / FILE
    try:
        # Not splitlines(): responses may contain its other separators, such as U+2028.
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]
        table = [
            {column: row[column] for column in COLUMNS if column != "scores"}
            | {f"score.{name}": value for name, value in row["scores"].items()}
            for row in rows
        ]
    except FileNotFoundError as error:
        raise UserError(f"{path}: is missing; run the same command with mode=evaluate") from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{path}: is damaged ({type(error).__name__}: {error}); run the same command with mode=evaluate "
            "to rewrite it from the response cache"
        ) from error
    # pandas gives an empty list no columns, and set_index would fail.
    return pandas.DataFrame(table, columns=None if table else list(COLUMNS)).set_index("id")
