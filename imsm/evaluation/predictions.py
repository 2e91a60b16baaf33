r"""`predictions.jsonl`: one row per example, read by statistics, reports and tables.

    {"id": "webq/test/17", "group": "webq/test/17", "prompt": "Question: …", "prompt_hash": "5f0c…",
     "response": " paris .\n", "tokens": 3, "ended": true, "answer": "paris", "references": ["Paris"],
     "scores": {"contain": 1.0, "exact_match": 1.0}, "reference_loglik": -1.7, "reference_tokens": 2,
     "gate_mean": 0.48, "gate_per_token": [0.47, 0.48, 0.49], "token_texts": [" paris", " .", "\n"]}

``prompt`` is the example's text, before truncation and chat template; ``prompt_hash`` is that of the tokens read.
The file is rewritten from the response cache by every evaluation; runs are paired by ``id``. `result.json` holds its
hash.
"""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pandas

from imsm.evaluation.result import REWRITE
from imsm.utils.errors import UserError
from imsm.utils.files import write_atomic
from imsm.utils.hashing import hash_text
from imsm.utils.json_files import read_text
from imsm.utils.paths import check_path_name

FILE = "predictions.jsonl"
COLUMNS = (
    *("id", "group", "prompt", "prompt_hash", "response", "tokens", "ended", "answer", "references", "scores"),
    *("reference_loglik", "reference_tokens", "gate_mean", "gate_per_token", "token_texts"),
)


def task_dir(folder: Path, *, task: str, test_set: str) -> Path:
    """Return a task's directory in a run directory; ``test_set`` is `EvalSet.fingerprint`.

    Raises:
        UserError: The task and the test set are of a saved file and no name of a directory.
    """
    evaluation = folder / "evaluation"
    return evaluation / check_path_name(f"{task}-{test_set[:8]}", key="task", source=evaluation)


def write_predictions(folder: Path, rows: Iterable[Mapping[str, Any]]) -> str:
    """Write the rows atomically; return the SHA-256 of the file.

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
    text = "".join(lines)
    write_atomic(folder / FILE, text)
    return hash_text(text)


def read_predictions(folder: Path, *, task: str, test_set: str, sha256: str | None) -> pandas.DataFrame:
    """Read a task's predictions, indexed by ``id``, in the order of the evaluation set.

    ``sha256`` is the file's hash in the result that is read, ``predictions_sha256`` of the task.

    Returns:
        The columns of ``COLUMNS``, with one column ``score.<metric>`` per metric instead of ``scores``.

    Raises:
        UserError: The file is missing, damaged, or not the one that the result was computed from.
    """
    path = task_dir(folder, task=task, test_set=test_set) / FILE
    text = read_text(path, fix=REWRITE)
    if hash_text(text) != sha256:
        raise UserError(f"{path}: changed since its result was written (its hash differs); {REWRITE}")
    try:
        # Not splitlines(): responses may contain its other separators, such as U+2028.
        rows = [json.loads(line) for line in text.split("\n") if line]
        if any(len(row["gate_per_token"] or ()) != len(row["token_texts"] or ()) for row in rows):
            raise ValueError("gate_per_token and token_texts differ in length")
        table = [
            {column: row[column] for column in COLUMNS if column != "scores"}
            | {f"score.{name}": value for name, value in row["scores"].items()}
            for row in rows
        ]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        problem = f"{type(error).__name__}: {error}"
        raise UserError(f"{path}: is of another version of imsm ({problem}); {REWRITE}") from error
    # pandas gives an empty list no columns, and set_index would fail.
    return pandas.DataFrame(table, columns=None if table else list(COLUMNS)).set_index("id")
